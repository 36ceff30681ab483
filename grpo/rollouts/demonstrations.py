"""Demonstrations played again: to imitate them, and to check which still succeed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from envs.base import Env, EnvError, Formatter, Observation, Renumberer, Task
from envs.demonstrations import Demonstration, read_demonstrations
from envs.replay import Pool
from grpo.errors import ConfigError, one_line_reason
from grpo.model.chat import ChatTemplate
from grpo.rollouts.agents import Agent, imitated
from grpo.rollouts.rollout import run_episode
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.types import Completion, Episode

if TYPE_CHECKING:
    from grpo.config import Config


ENOUGH = 10
"""Demonstrations from which on some are not imitated, but measured."""

SEVERAL = 3
"""Seeds of a task from which on one of them is not imitated, but measured."""


class DemonstrationSampler:
    """Draws demonstrations, each once per epoch, in an order that the seed determines.

    Every epoch draws another variant of their tasks: where an environment numbers its elements,
    these numbers differ, and a policy cannot learn them instead of reading the page.

    Args:
        demonstrations: what to draw from.
        seed: random seed of the order.
    """

    def __init__(self, demonstrations: Sequence[Demonstration], seed: int = 0):
        self.demonstrations, self.seed = demonstrations, seed

    def draw(self, step: int, count: int) -> list[tuple[Demonstration, Task]]:
        """Draw the demonstrations of a step, each with the variant of its task to play.

        Args:
            step: number of the step.
            count: number of demonstrations, of all ranks.
        """
        drawn = []
        for position in range(step * count, (step + 1) * count):
            epoch, i = divmod(position, len(self.demonstrations))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.demonstrations))
            demonstration = self.demonstrations[order[i]]
            drawn.append((demonstration, replace(demonstration.task, variant=epoch)))
        return drawn


def split_held_out(
    demonstrations: Sequence[Demonstration], part: float, seed: int = 0
) -> tuple[list[Demonstration], list[Demonstration]]:
    """Choose demonstrations that are not imitated, to measure on them what imitation teaches.

    Whole seeds are chosen: what several people did on one page is imitated or measured. Every task
    with at least `SEVERAL` seeds has one of them; if no task has, one of all is chosen.

    Args:
        demonstrations: what was demonstrated.
        part: of the seeds of each task; 0 for none.
        seed: random seed of the choice.

    Returns:
        What to imitate and what to measure, in the order given; with fewer than `ENOUGH`
        demonstrations nothing is measured.
    """
    if not part or len(demonstrations) < ENOUGH:
        return list(demonstrations), []
    tasks = list(dict.fromkeys(each.task for each in demonstrations))
    tasks = [tasks[i] for i in np.random.default_rng([seed, len(tasks)]).permutation(len(tasks))]
    held_out: set[Task] = set()
    for name in sorted({task.name for task in tasks}):
        of_name = [task for task in tasks if task.name == name]
        if len(of_name) >= SEVERAL:
            held_out |= set(of_name[: max(1, round(part * len(of_name)))])
    if not held_out and len(tasks) > 1:
        held_out = set(tasks[: max(1, round(part * len(tasks)))])
    imitated = [each for each in demonstrations if each.task not in held_out]
    return imitated, [each for each in demonstrations if each.task in held_out]


def load_demonstrations(config: Config) -> list[Demonstration]:
    """Read the demonstrations of the tasks that a run trains on; others are left out.

    Raises:
        ConfigError: the file cannot be used for this run.
    """
    path = config.demonstrations
    try:
        every = read_demonstrations(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"demonstrations: {error}") from error
    found = [each for each in every if each.task.name in config.task]
    if not found:
        names = ", ".join(sorted({each.task.name for each in every}))
        raise ConfigError(
            f"{path}: expected demonstrations of {', '.join(config.task):.100}, got {names:.100}"
        )
    for demonstration in found:
        task, turns = demonstration.task, len(demonstration.actions)
        if task.seed >= HELD_OUT:
            raise ConfigError(
                f"{path}: expected a training seed, below {HELD_OUT}, got {task.seed} of "
                f"{task.name}: the policy is evaluated on it"
            )
        if turns > config.max_turns:
            raise ConfigError(
                f"max_turns must be at least {turns} for the demonstration of {task.name} with "
                f"seed {task.seed} in {path}, got {config.max_turns}"
            )
    return found


def read_existing(path: Path) -> list[Demonstration]:
    """Return the demonstrations of a file that may be missing or empty.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        return read_demonstrations(path) if path.exists() and path.stat().st_size else []
    except (OSError, ValueError) as error:
        raise ConfigError(one_line_reason(error)) from error


@dataclass
class Replay:
    """A demonstration that was played again.

    Attributes:
        demonstration: what was played.
        episode: the episode; None if the infrastructure failed.
        error: why it did not succeed: the first error of an action, or of the infrastructure.
        differs: number of the first action, from 1, whose page was not the recorded one; 0 if
            there is none, or no pages were recorded.
    """

    demonstration: Demonstration
    episode: Episode | None = None
    error: str = ""
    differs: int = 0

    @property
    def succeeds(self) -> bool:
        """True if the episode is a success."""
        return self.episode is not None and self.episode.success


async def replay(
    pool: Pool,
    demonstration: Demonstration,
    task: Task | None = None,
    chat: ChatTemplate | None = None,
    max_prompt_tokens: int = 0,
) -> Replay:
    """Play a demonstration again, with one retry on a fresh session.

    Args:
        pool: the environments.
        demonstration: what to play.
        task: a variant of its task; None for the task itself.
        chat: makes the tokens to imitate; None where nobody learns from them.
        max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`.

    Raises:
        TaskError: the environment does not have the task.
    """
    played = Replay(demonstration)
    for is_retry in (False, True):
        agent = _agent(played, chat, max_prompt_tokens)
        turns, played.error, played.differs = len(demonstration.actions), "", 0
        try:
            async with pool.lease(fresh=is_retry) as env:
                played.episode = await run_episode(
                    env, task or demonstration.task, agent, max_turns=turns, seed=[0]
                )
            break
        except EnvError as error:
            played.error = str(error)
    if played.episode and not played.error:
        played.error = f"no success after {len(played.episode.turns)} actions"
    if played.succeeds:
        played.error = ""
    return played


def _agent(played: Replay, chat: ChatTemplate | None, max_prompt_tokens: int) -> Agent:
    """Return the agent of one episode that repeats the demonstrated actions."""
    demonstration = played.demonstration
    turns: Iterator[int] = iter(range(len(demonstration.actions)))

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        turn = next(turns)
        text = demonstration.actions[turn]
        if isinstance(env, Renumberer):
            text = env.renumbered(text)
        if isinstance(env, Formatter):
            text = env.write_action(
                text, demonstration.thoughts[turn] if demonstration.thoughts else ""
            )
        if observation.error and not played.error:
            played.error = f"action {turn}: {observation.error}"
        if demonstration.pages and observation.page != demonstration.pages[turn]:
            played.differs = played.differs or turn + 1
        return text, imitated(observation, text, chat, max_prompt_tokens)

    return act
