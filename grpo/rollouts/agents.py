"""Agents: whatever plays an episode. A policy behind a generator, an oracle, a random one.

A model's agent reads and writes through the model's chat template, `grpo.model.chat`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from envs.base import Demonstrator, Env, Observation
from grpo.generators.base import Generator
from grpo.model.chat import ChatTemplate
from grpo.types import Completion

LONG_PAGE = 20_000
"""Characters of a page above which it is tokenized in a thread."""

Agent = Callable[[Observation, int, Env], Awaitable[tuple[str, Completion]]]
"""`(observation, seed, env) -> (text, how it was sampled)`.

A model reads the observation alone; the environment is there for an oracle to ask.
"""


def fit_page(
    observation: Observation, chat: ChatTemplate, max_tokens: int = 0
) -> tuple[Observation, int]:
    """Return the observation with as many lines of the page as the prompt's limit leaves.

    Args:
        observation: its messages go through the chat template.
        chat: the model's chat template.
        max_tokens: a longer prompt loses lines at the end of its page; 0 for no limit.

    Returns:
        The observation, and how many lines were left out.
    """
    lines = len(observation.page.splitlines())
    if not max_tokens or len(chat.prompt(observation.messages)) <= max_tokens:
        return observation, 0
    fits, too_long = 0, lines
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(chat.prompt(observation.cut(middle).messages)) <= max_tokens:
            fits = middle
        else:
            too_long = middle
    return observation.cut(fits), lines - fits


def read_prompt(
    observation: Observation, chat: ChatTemplate, max_tokens: int = 0
) -> tuple[list[int], int]:
    """Return the tokens that the policy reads, and how many lines of the page were left out.

    Args:
        observation: its messages go through the chat template.
        chat: the model's chat template.
        max_tokens: a longer prompt loses lines at the end of its page; 0 for no limit.
    """
    observation, lines_cut = fit_page(observation, chat, max_tokens)
    return chat.prompt(observation.messages), lines_cut


def model_agent(
    generator: Generator, chat: ChatTemplate, *, temperature: float, max_prompt_tokens: int = 0
) -> Agent:
    """Return the agent that asks a generator: messages in, text out.

    Args:
        generator: samples the completions.
        chat: the model's chat template.
        temperature: 0 for greedy completions.
        max_prompt_tokens: see `read_prompt`.
    """

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        read = partial(read_prompt, observation, chat, max_prompt_tokens)
        # A page is foreign text: a long one must not hold up the other episodes.
        long = len(observation.page) > LONG_PAGE
        prompt_ids, lines_cut = await asyncio.to_thread(read) if long else read()
        completion = await generator.generate(prompt_ids, seed=seed, temperature=temperature)
        return chat.read(completion), replace(completion, lines_cut=lines_cut)

    return act


def oracle_agent(chat: ChatTemplate | None = None, max_prompt_tokens: int = 0) -> Agent:
    """Return the agent that does what the environment demonstrates.

    Args:
        chat: makes the tokens to imitate; None where nobody learns from them.
        max_prompt_tokens: see `read_prompt`.

    Returns:
        An agent that says `noop()`, and no tokens, where nothing is demonstrated.
    """

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        text = env.demonstrate() if isinstance(env, Demonstrator) else ""
        return text or "noop()", imitated(observation, text, chat, max_prompt_tokens)

    return act


def imitated(
    observation: Observation, text: str, chat: ChatTemplate | None, max_prompt_tokens: int = 0
) -> Completion:
    """Return the completion of somebody who is to be imitated.

    Args:
        observation: what is shown to the policy.
        text: what the policy is to say; empty for no tokens.
        chat: makes the tokens to imitate; None where nobody learns from them.
        max_prompt_tokens: see `read_prompt`.
    """
    prompt_ids: Sequence[int] = ()
    ids: Sequence[int] = ()
    if chat is not None and text:
        shown, _ = fit_page(observation, chat, max_prompt_tokens)
        prompt_ids, ids = chat.demonstration(shown.messages, text)
    return Completion(tuple(prompt_ids), tuple(ids), (0.0,) * len(ids), -1, "stop")


async def random_agent(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
    """Choose one of the actions that the page allows, uniformly."""
    random = np.random.default_rng(seed)
    text = str(random.choice(observation.actions)) if observation.actions else "noop()"
    return text, Completion((), (), (), policy_version=-1, finish_reason="stop")


def blind_agent(agent: Agent) -> Agent:
    """Return the same agent with every page hidden: what it knows without reading."""

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        return await agent(observation.hide(), seed, env)

    return act
