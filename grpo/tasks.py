"""Which tasks and seeds the next step plays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from envs.base import Task
from grpo.types import Group

HELD_OUT = 1_000_000
"""Training seeds are below this number, evaluation's seeds are not: they never meet."""

REPLAYED = 0.5
REMEMBERED = 1024


class TaskSampler:
    """Draws the groups' tasks, each draw a function of the seed, the step and what was seen.

    "uniform" takes every task and seed alike. "middling" replaces half of the draws by seeds
    that were solved sometimes, each with a weight of p (1 - p), where p is the success of its
    latest group: the variance of the reward, and so the size of the signal (learnability,
    arXiv 2502.12272).

    Args:
        names: tasks to draw from.
        kind: "uniform" or "middling".
        seed: of the draws.
    """

    def __init__(
        self, names: Sequence[str], kind: Literal["uniform", "middling"] = "uniform", seed: int = 0
    ) -> None:
        self.names, self.kind, self.seed = list(names), kind, seed
        self._success: dict[Task, float] = {}  # the middling ones, in the order of their play

    def draw(self, step: int, count: int, attempt: int = 0) -> list[Task]:
        """The tasks of a step, one a group.

        Args:
            step: number of the step.
            count: how many groups, of all ranks.
            attempt: 1, 2, ... for further draws of the same step.

        Returns:
            Tasks of distinct seeds, all below `HELD_OUT`.
        """
        random = np.random.default_rng([self.seed, step, *([attempt] if attempt else [])])
        seeds = random.choice(HELD_OUT, count, replace=False)
        names = [self.names[0]] * count
        if len(self.names) > 1:
            names = random.choice(self.names, count).tolist()
        tasks = [Task(name, int(seed)) for name, seed in zip(names, seeds, strict=True)]
        if self.kind == "middling" and self._success:
            known, success = list(self._success), np.array([*self._success.values()])
            replayed = min(int(count * REPLAYED), len(known))
            weights = success * (1 - success)
            chosen = random.choice(len(known), replayed, replace=False, p=weights / weights.sum())
            tasks[:replayed] = [known[i] for i in chosen]
        return tasks

    def observe(self, groups: Iterable[Group]) -> None:
        """Take note of how the groups of a step went."""
        for group in groups:
            p = sum(episode.success for episode in group.episodes) / len(group.episodes)
            self._success.pop(group.task, None)
            if 0 < p < 1:
                self._success[group.task] = p
        for task in list(self._success)[:-REMEMBERED]:
            del self._success[task]

    def state(self) -> list[Any]:
        """What `load_state` takes."""
        return [[task.name, task.seed, p] for task, p in self._success.items()]

    def load_state(self, state: list[Any]) -> None:
        """Go on from what `state` gave."""
        self._success = {Task(name, seed): p for name, seed, p in state}
