"""Rollouts: one coroutine per episode, so that a slow page does not hold up the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from envs.base import Env, EnvError, Task
from envs.replay import Lender, NotReproducible, Pool
from grpo.rollouts.agents import Agent
from grpo.rollouts.gather import gather
from grpo.rollouts.page_state import page_state
from grpo.types import Episode, Group, StepRecord, Turn

OnEpisode = Callable[[Episode | None], None]
"""Called after each episode; with None for one that was dropped."""


def ignore_episode(episode: Episode | None) -> None:
    """Do nothing: the default of `on_episode`."""


async def run_episode(
    env: Env,
    task: Task,
    agent: Agent,
    *,
    max_turns: int,
    seed: Sequence[int],
    valid_action_bonus: float = 0.0,
    record: bool = False,
) -> Episode:
    """Play one episode.

    Args:
        env: a session that nobody else uses.
        task: what to start from.
        agent: plays it.
        max_turns: completions at most.
        seed: numbers that determine what is sampled, together with the turn's number.
        valid_action_bonus: added to the reward for each valid action.
        record: True to take screenshots and return `Episode.records`.

    Raises:
        EnvError: the infrastructure failed; the episode has no outcome.
    """
    observation = await env.reset(task, screenshot=record)
    turns: list[Turn] = []
    records: list[StepRecord] = []
    verdicts: dict[str, bool] = {}
    reward, success, done = 0.0, False, False
    while not done and len(turns) < max_turns:
        turn_seed = int(np.random.SeedSequence([*seed, len(turns)]).generate_state(1)[0])
        text, completion = await agent(observation, turn_seed, env)
        result = await env.step(text)
        records.append(StepRecord(observation, result))
        turn_reward = result.reward + valid_action_bonus * result.valid_action
        state = page_state(observation)
        turns.append(Turn(completion, text, result.valid_action, turn_reward, state))
        reward += turn_reward
        success = success or bool(result.success)
        verdicts |= {name: v or verdicts.get(name, False) for name, v in result.verdicts.items()}
        done, observation = result.done, result.observation
    records.append(StepRecord(observation))
    stop_reason: Literal["done", "max_turns"] = "done" if done else "max_turns"
    shown = tuple(records) if record else ()
    return Episode(
        task, tuple(turns), reward, success, stop_reason, observation.goal, shown, verdicts
    )


@dataclass
class Rollouts:
    """Plays episodes over a pool of sessions; infrastructure failures are data.

    An episode whose session fails is played once more on a fresh session, then dropped; a group
    with fewer than two survivors is dropped. Each is counted, and none becomes a reward.

    Attributes:
        pool: the sessions; its size bounds how many are in use at once.
        agent: plays the episodes.
        max_turns: completions per episode at most.
        valid_action_bonus: reward for each valid action.
        counters: `env_failures`, `episodes`, `episodes_dropped`, `groups_dropped`.
        last_error: message of the newest failure.
    """

    pool: Pool
    agent: Agent
    max_turns: int
    valid_action_bonus: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    last_error: str = ""

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ValueError(f"max_turns must be at least 1, got {self.max_turns}")

    async def episode(
        self,
        task: Task,
        seed: Sequence[int],
        *,
        record: bool = False,
        on_episode: OnEpisode = ignore_episode,
        lender: Lender | None = None,
    ) -> Episode | None:
        """Play one episode, with one retry; return None if both attempts failed.

        Args:
            task: what to start from.
            seed: numbers that determine what is sampled.
            record: True to take screenshots and return `Episode.records`.
            on_episode: called after the episode.
            lender: lends the session; None for the pool.
        """

        def play(env: Env) -> Awaitable[Episode]:
            turns, bonus = self.max_turns, self.valid_action_bonus
            options: dict[str, Any] = {"max_turns": turns, "valid_action_bonus": bonus}
            return run_episode(env, task, self.agent, seed=seed, record=record, **options)

        episode: Episode | None = None
        for is_retry in (False, True):
            try:
                try:
                    async with (lender or self.pool).lease(fresh=is_retry) as env:
                        episode = await play(env)
                except NotReproducible:  # so the task is not shared any more
                    async with self.pool.lease(fresh=is_retry) as env:
                        episode = await play(env)
                break
            except EnvError as error:
                self.counters["env_failures"] += 1
                self.last_error = str(error)
        self.counters["episodes" if episode else "episodes_dropped"] += 1
        on_episode(episode)
        return episode

    async def group(
        self,
        task: Task,
        group_size: int,
        seed: Sequence[int],
        *,
        on_episode: OnEpisode = ignore_episode,
    ) -> Group | None:
        """Play the episodes of one task and seed; return None if fewer than two survive."""
        async with self.pool.share(task) as lender:
            episodes = await gather(
                self.episode(task, [*seed, i], on_episode=on_episode, lender=lender)
                for i in range(group_size)
            )
        survivors = tuple(episode for episode in episodes if episode is not None)
        if len(survivors) >= 2:
            return Group(task, survivors)
        self.counters["groups_dropped"] += 1
        return None

    async def collect(
        self,
        tasks: Sequence[Task],
        group_size: int,
        seed: Sequence[int],
        *,
        first: int = 0,
        on_episode: OnEpisode = ignore_episode,
    ) -> list[Group]:
        """Play the groups of one training step, all at once.

        Args:
            tasks: one per group.
            group_size: episodes per group, G.
            seed: numbers that determine what is sampled, together with the group's number.
            first: number of the first group.
            on_episode: called after each episode.

        Raises:
            EnvError: no group survived: the infrastructure is broken, not slow.
        """
        groups = await gather(
            self.group(task, group_size, [*seed, i], on_episode=on_episode)
            for i, task in enumerate(tasks, first)
        )
        survivors = [group for group in groups if group is not None]
        if not survivors:
            raise EnvError(f"no group of the step survived; the last error: {self.last_error}")
        return survivors
