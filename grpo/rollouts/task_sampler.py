"""The task sampler: it draws the tasks and seeds of each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from envs.base import Task
from grpo.algorithm.choices import TaskSampling
from grpo.types import Group

HELD_OUT = 1_000_000
"""Training seeds are below this number, and evaluation seeds are not."""

REPLAYED = 0.5
"""Share of the draws that "learnability" takes from seeds that were solved sometimes."""

REMEMBERED = 1024
"""How many such seeds are kept."""

RECENT = 10
"""Groups over which a task's success rate is averaged."""

MASTERED = 0.8
"""Success rate at which a curriculum adds the next task."""


class TaskSampler:
    """Draws the groups' tasks, each draw a function of the seed, the step and past success.

    "uniform" draws every task and seed with equal probability. "learnability" weights tasks by
    p (1 - p), where p is the success rate of a task's latest groups: the variance of the reward,
    and so the size of the signal (arXiv 2502.12272). It also replaces half of the draws by seeds
    that were solved sometimes, with the same weights. "curriculum" takes the tasks in the order
    given: half of the draws are the first task that is not mastered yet, the others are spread
    over it and all tasks before it.

    Args:
        names: tasks to draw from.
        kind: one of these.
        seed: random seed of the draws.
    """

    def __init__(self, names: Sequence[str], kind: TaskSampling = "uniform", seed: int = 0) -> None:
        if kind not in get_args(TaskSampling):
            raise ValueError(f"kind must be one of {get_args(TaskSampling)}, got {kind!r}")
        self.names, self.kind, self.seed = list(names), kind, seed
        self._success: dict[Task, float] = {}  # the learnability ones, in the order of their play
        self._rates = dict.fromkeys(self.names, (0.0, 0))  # success rate, groups seen

    def draw(
        self, step: int, count: int, attempt: int = 0, weights: Sequence[float] = ()
    ) -> list[Task]:
        """Draw the tasks of a step, one per group.

        Args:
            step: number of the step.
            count: number of groups, of all ranks.
            attempt: 1, 2, ... for further draws of the same step.
            weights: of the tasks, in the order of their names, in place of those of the kind.

        Returns:
            Tasks of distinct seeds, all below `HELD_OUT`.
        """
        random = np.random.default_rng([self.seed, step, *([attempt] if attempt else [])])
        seeds = random.choice(HELD_OUT, count, replace=False)
        names = [self.names[0]] * count
        if len(self.names) > 1:
            chances = np.array(weights or self._weights())
            names = random.choice(self.names, count, p=chances / chances.sum()).tolist()
        tasks = [Task(name, int(seed)) for name, seed in zip(names, seeds, strict=True)]
        if self.kind == "learnability" and self._success:
            known, success = list(self._success), np.array([*self._success.values()])
            replayed = min(int(count * REPLAYED), len(known))
            variances = success * (1 - success)
            chosen = random.choice(
                len(known), replayed, replace=False, p=variances / variances.sum()
            )
            tasks[:replayed] = [known[i] for i in chosen]
        return tasks

    def observe(self, groups: Iterable[Group]) -> None:
        """Update the success rates by the groups of a step."""
        for group in groups:
            p = sum(episode.success for episode in group.episodes) / len(group.episodes)
            rate, seen = self._rates.get(group.task.name, (0.0, 0))
            seen = min(seen + 1, RECENT)
            self._rates[group.task.name] = (rate + (p - rate) / seen, seen)
            self._success.pop(group.task, None)
            if 0 < p < 1:
                self._success[group.task] = p
        for task in list(self._success)[:-REMEMBERED]:
            del self._success[task]

    def state(self) -> dict[str, Any]:
        """Return the success rates and the seeds solved sometimes."""
        seeds = [[task.name, task.seed, p] for task, p in self._success.items()]
        return {"seeds": seeds, "rates": self._rates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        self._success = {Task(name, int(seed)): float(p) for name, seed, p in state["seeds"]}
        if not all(0 < p < 1 for p in self._success.values()):
            raise ValueError("seeds solved sometimes must have rates between 0 and 1")
        rates = {name: state["rates"][name] for name in self._rates}
        self._rates = {name: (float(rate), int(seen)) for name, (rate, seen) in rates.items()}

    def _weights(self) -> Any:
        """Return the weight of each task, in the order of the names."""
        rates = [self._rates[name] for name in self.names]
        weights = np.ones(len(rates))
        if self.kind == "learnability":
            # Tasks that are never or always solved keep a fifth of the highest weight.
            weights = np.array([max(p * (1 - p), 0.05) if seen else 0.25 for p, seen in rates])
        elif self.kind == "curriculum":
            mastered = [seen == RECENT and p >= MASTERED for p, seen in rates]
            newest = mastered.index(False) if False in mastered else len(rates) - 1
            weights = np.where(np.arange(len(rates)) <= newest, 1.0, 0.0) / (newest + 1)
            weights[newest] += 1.0
        return weights
