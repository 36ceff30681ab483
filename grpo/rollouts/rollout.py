"""Rollouts: one coroutine an episode, so that a slow page holds nobody up.

This is where messages become tokens and tokens become actions.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from envs.base import Env, EnvError, Observation, StepResult, Task
from envs.pool import EnvPool
from grpo.generators.base import Generator
from grpo.types import Completion, Episode, Group, Turn

Act = Callable[[Observation, int], Awaitable[tuple[str, Completion]]]
"""A policy as an episode sees it: (observation, seed) -> (text, how it was sampled)."""


class StepRecord(NamedTuple):
    """One page of an episode: what was seen, and what came of the answer (None after the end)."""

    observation: Observation
    result: StepResult | None = None


def read_prompt(
    observation: Observation, tokenizer: Any, max_tokens: int = 0
) -> tuple[list[int], int]:
    """The tokens that the policy reads, with as many lines of the page as fit.

    Args:
        observation: its messages go through the chat template.
        tokenizer: with a chat template.
        max_tokens: a longer prompt loses lines at the end of its page; 0: no limit.

    Returns:
        The ids, and how many lines were left out.
    """

    def prompt(observation: Observation) -> list[int]:
        return tokenizer.apply_chat_template(
            list(observation.messages), add_generation_prompt=True, return_dict=False
        )

    ids, lines = prompt(observation), len(observation.page.splitlines())
    if not max_tokens or len(ids) <= max_tokens:
        return ids, 0
    fitting, too_long = 0, lines
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if len(prompt(observation.cut(middle))) <= max_tokens:
            fitting = middle
        else:
            too_long = middle
    return prompt(observation.cut(fitting)), lines - fitting


def model_agent(
    generator: Generator, tokenizer: Any, *, temperature: float, max_prompt_tokens: int = 0
) -> Act:
    """The policy that asks a generator: chat template in, decoded text out.

    Args:
        generator: samples the answers.
        tokenizer: with a chat template.
        temperature: 0 for greedy answers.
        max_prompt_tokens: see `read_prompt`.
    """

    async def act(observation: Observation, seed: int) -> tuple[str, Completion]:
        prompt_ids, lines_cut = read_prompt(observation, tokenizer, max_prompt_tokens)
        completion = await generator.generate(prompt_ids, seed=seed, temperature=temperature)
        text = tokenizer.decode(completion.completion_ids, skip_special_tokens=True)
        return text, replace(completion, lines_cut=lines_cut)

    return act


async def run_episode(
    env: Env,
    task: Task,
    act: Act,
    *,
    max_turns: int,
    seed: Sequence[int],
    valid_action_bonus: float = 0.0,
    frames: list[StepRecord] | None = None,
) -> Episode:
    """Play one episode.

    Args:
        env: a session that nobody else uses.
        task: what to start from.
        act: the policy.
        max_turns: actions at most.
        seed: numbers that fix what is sampled; the turn's number is added to them.
        valid_action_bonus: added to the reward for each valid action.
        frames: if given, screenshots are asked for and every turn is appended.

    Raises:
        EnvError: the machinery failed; there is no outcome.
    """
    observation = await env.reset(task, screenshot=frames is not None)
    turns: list[Turn] = []
    reward, success, done = 0.0, False, False
    while not done and len(turns) < max_turns:
        turn_seed = int(np.random.SeedSequence([*seed, len(turns)]).generate_state(1)[0])
        text, completion = await act(observation, turn_seed)
        result = await env.step(text)
        if frames is not None:
            frames.append(StepRecord(observation, result))
        earned = result.reward + valid_action_bonus * result.valid_action
        state = page_state(observation)
        turns.append(Turn(completion, text, result.valid_action, earned, state))
        reward += earned
        success, done, observation = success or result.success, result.done, result.observation
    if frames is not None:
        frames.append(StepRecord(observation))
    stop_reason: Literal["done", "max_turns"] = "done" if done else "max_turns"
    return Episode(task, tuple(turns), reward, success, stop_reason, observation.goal)


def page_state(observation: Observation) -> str:
    """Name the page of an observation: equal pages have equal names.

    This is the anchor state of GiGPO (arXiv 2505.10978), by which the turns of a group are
    compared. It is the page as the model reads it. History and error say how the episode came
    to the page, not where it is; the goal is the group's; the address is left out because the
    model does not read it and two servers may have different ones. An observation without a
    page is named by its last message.
    """
    seen = observation.page or observation.messages[-1]["content"]
    return hashlib.sha256(seen.encode(errors="surrogatepass")).hexdigest()[:16]


@dataclass
class Rollouts:
    """Plays episodes over a pool of sessions; failures of the machinery are data.

    An episode whose session fails is played once more on a fresh one, then dropped; a group
    with fewer than two survivors is dropped. Each is counted and none becomes a reward.

    Attributes:
        pool: the sessions; its size bounds how many episodes run at once.
        act: the policy.
        max_turns: actions an episode at most.
        valid_action_bonus: reward for each valid action.
        on_episode: called after each episode, with None for a dropped one.
        counters: `env_failures`, `episodes`, `episodes_dropped`, `groups_dropped`.
        last_error: of the newest failure.
    """

    pool: EnvPool
    act: Act
    max_turns: int
    valid_action_bonus: float = 0.0
    on_episode: Callable[[Episode | None], None] = lambda _: None
    counters: Counter[str] = field(default_factory=Counter)
    last_error: str = ""

    async def episode(
        self, task: Task, seed: Sequence[int], *, frames: list[StepRecord] | None = None
    ) -> Episode | None:
        """One episode, retried once; None if both tries failed."""
        for second_try in (False, True):
            try:
                async with self.pool.lease(fresh=second_try) as env:
                    episode = await run_episode(
                        env,
                        task,
                        self.act,
                        max_turns=self.max_turns,
                        seed=seed,
                        valid_action_bonus=self.valid_action_bonus,
                        frames=frames,
                    )
            except EnvError as error:
                self.counters["env_failures"] += 1
                self.last_error = str(error)
                if frames is not None:
                    frames.clear()
                continue
            self.counters["episodes"] += 1
            self.on_episode(episode)
            return episode
        self.counters["episodes_dropped"] += 1
        self.on_episode(None)
        return None

    async def group(self, task: Task, group_size: int, seed: Sequence[int]) -> Group | None:
        """The surviving episodes of one task and seed; None if fewer than two survive."""
        episodes = await gather(self.episode(task, [*seed, i]) for i in range(group_size))
        survivors = tuple(episode for episode in episodes if episode is not None)
        if len(survivors) >= 2:
            return Group(task, survivors)
        self.counters["groups_dropped"] += 1
        return None

    async def collect(
        self, tasks: Sequence[Task], group_size: int, seed: Sequence[int], *, first: int = 0
    ) -> list[Group]:
        """The groups of one training step, all played at once.

        Args:
            tasks: one a group.
            group_size: episodes a group, G.
            seed: numbers that fix what is sampled, with the group's number.
            first: number of the first group.

        Raises:
            EnvError: no group survived; the machinery is broken, not slow.
        """
        groups = await gather(
            self.group(task, group_size, [*seed, i]) for i, task in enumerate(tasks, first)
        )
        survivors = [group for group in groups if group is not None]
        if not survivors:
            raise EnvError(f"no group of the step survived; the last error: {self.last_error}")
        return survivors


async def gather(coroutines: Any) -> list[Any]:
    """All results in order; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in running]
