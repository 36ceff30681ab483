"""Agents: whatever plays an episode. A policy behind a generator, an oracle, a random one.

This is where messages become tokens and tokens become text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from envs.base import Demonstrator, Env, Observation
from grpo.generators.base import Generator
from grpo.types import Completion

Agent = Callable[[Observation, int, Env], Awaitable[tuple[str, Completion]]]
"""`(observation, seed, env) -> (text, how it was sampled)`.

A model reads the observation alone; the environment is there for an oracle to ask.
"""


def read_prompt(
    observation: Observation, tokenizer: Any, max_tokens: int = 0
) -> tuple[list[int], int]:
    """Return the tokens that the policy reads, with as many lines of the page as fit.

    Args:
        observation: its messages go through the chat template.
        tokenizer: has a chat template.
        max_tokens: a longer prompt loses lines at the end of its page; 0 for no limit.

    Returns:
        The ids, and how many lines were left out.
    """

    def prompt(observation: Observation) -> list[int]:
        ids: list[int] = tokenizer.apply_chat_template(
            list(observation.messages), add_generation_prompt=True, return_dict=False
        )
        return ids

    ids, lines = prompt(observation), len(observation.page.splitlines())
    if not max_tokens or len(ids) <= max_tokens:
        return ids, 0
    fits, too_long = 0, lines
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if len(prompt(observation.cut(middle))) <= max_tokens:
            fits = middle
        else:
            too_long = middle
    return prompt(observation.cut(fits)), lines - fits


def model_agent(
    generator: Generator, tokenizer: Any, *, temperature: float, max_prompt_tokens: int = 0
) -> Agent:
    """Return the agent that asks a generator: chat template in, decoded text out.

    Args:
        generator: samples the completions.
        tokenizer: has a chat template.
        temperature: 0 for greedy completions.
        max_prompt_tokens: see `read_prompt`.
    """

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        prompt_ids, lines_cut = read_prompt(observation, tokenizer, max_prompt_tokens)
        completion = await generator.generate(prompt_ids, seed=seed, temperature=temperature)
        text = tokenizer.decode(completion.completion_ids, skip_special_tokens=True)
        return text, replace(completion, lines_cut=lines_cut)

    return act


def oracle_agent(tokenizer: Any = None, max_prompt_tokens: int = 0) -> Agent:
    """Return the agent that does what the environment demonstrates.

    Args:
        tokenizer: makes the tokens to imitate; None where nobody learns from them.
        max_prompt_tokens: see `read_prompt`.

    Returns:
        An agent that says `noop()`, and no tokens, where nothing is demonstrated.
    """

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        text = env.demonstrate() if isinstance(env, Demonstrator) else ""
        prompt_ids: Sequence[int] = ()
        ids: Sequence[int] = ()
        if tokenizer is not None and text:
            prompt_ids, _ = read_prompt(observation, tokenizer, max_prompt_tokens)
            ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        completion = Completion(tuple(prompt_ids), tuple(ids), (0.0,) * len(ids), -1, "stop")
        return text or "noop()", completion

    return act


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
