"""A trained agent at work: one episode, action by action, on a page that may be a live one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from envs.base import Env, Observation, StepResult, Task
from grpo.generators.factory import open_generator
from grpo.model.loading import load_policy
from grpo.rollouts.agents import Agent, model_agent
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.config import Config

MAX_ACTIONS = 10

Stop = Literal["", "done", "max_actions", "repeated", "declined"]
"""Why an episode ends: the environment ended it, the bound, the same again, or a person."""


@dataclass(frozen=True)
class ActStep:
    """One action of an agent.

    Attributes:
        number: 1 for the first.
        observation: the page that it was chosen on.
        text: what the model wrote.
        completion: how it was sampled.
        target: the elements that it names, as the page describes them; "" where the environment
            cannot say.
        result: its outcome; None if it was not executed.
        stop: why it is the last one; "" if it is not.
    """

    number: int
    observation: Observation
    text: str
    completion: Completion
    target: str = ""
    result: StepResult | None = None
    stop: Stop = ""


Confirm = Callable[[ActStep], Awaitable[bool]]
"""Awaited with a step whose action is not executed yet; False ends the episode instead."""


async def act(
    env: Env,
    agent: Agent,
    task: Task,
    *,
    max_actions: int = MAX_ACTIONS,
    seed: int = 0,
    stop_at_repetition: bool = False,
    confirm: Confirm | None = None,
) -> AsyncGenerator[ActStep, None]:
    """Play one episode, and yield each action when it is done.

    Args:
        env: a session, such as that of `envs.browser.live.open_live`; its page stays as it is at
            the end.
        agent: such as that of `open_agent`.
        task: what to start from.
        max_actions: number of actions at most.
        seed: determines what is sampled, as in an evaluation.
        stop_at_repetition: True to end when the agent writes the same on the same page as just
            before: it has nothing more to do, or is stuck.
        confirm: asked before each action; None for no question.

    Raises:
        TaskError: the task cannot be served.
        EnvError, GeneratorError: the infrastructure failed.
    """
    if max_actions < 1:
        raise ValueError(f"max_actions must be at least 1, got {max_actions}")
    observation = await env.reset(task, screenshot=True)
    before: tuple[str, ...] = ()
    for number in range(1, max_actions + 1):
        entropy = np.random.SeedSequence([seed, task.seed, number - 1])
        text, completion = await agent(observation, int(entropy.generate_state(1)[0]), env)
        describe = getattr(env, "target", None)  # a browser's environment can
        target = describe(text) if describe is not None else ""
        step = ActStep(number, observation, text, completion, target)
        now = (observation.url, observation.page, text)
        if stop_at_repetition and now == before:
            yield replace(step, stop="repeated")
            return
        if confirm is not None and not await confirm(step):
            yield replace(step, stop="declined")
            return
        result = await env.step(text)
        stop: Stop = "done" if result.done else "max_actions" if number == max_actions else ""
        yield replace(step, result=result, stop=stop)
        if stop:
            return
        before, observation = now, result.observation


@asynccontextmanager
async def open_agent(config: Config, *, temperature: float = 0.0) -> AsyncIterator[Agent]:
    """Load the policy that a configuration names as an agent; close it at the end of the block.

    Prompts and completions are those of a training run with this configuration.

    Args:
        config: names the model, the adapter and the generator.
        temperature: 0 for the likeliest completion.

    Raises:
        ConfigError: the configuration asks for something that cannot be done.
        GeneratorError: the generator does not start.
    """
    executor = ThreadPoolExecutor(1, "torch")
    try:
        loop = asyncio.get_running_loop()
        policy = await loop.run_in_executor(executor, load_policy, config)
        async with open_generator(config, policy, executor) as generator:
            room = policy.max_length - config.max_completion_tokens
            yield model_agent(
                generator,
                policy.chat,
                temperature=temperature,
                max_prompt_tokens=min(room, config.max_prompt_tokens or room),
            )
    finally:
        executor.shutdown(wait=False)
