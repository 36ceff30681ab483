"""Which tasks and seeds the next step plays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from envs.base import Task
from grpo.types import Group

HELD_OUT = 1_000_000
"""Training seeds are below this number, evaluation's seeds are not: they never meet."""

REPLAYED = 0.5
REMEMBERED = 1024

RECENT = 10
"""Groups over which a task's success is averaged."""

MASTERED = 0.8
"""Success at which a curriculum goes on to the next task."""

SamplerKind = Literal["uniform", "learnability", "curriculum"]


class TaskSampler:
    """Draws the groups' tasks, each draw a function of the seed, the step and what was seen.

    "uniform" takes every task and seed alike. "learnability" weighs tasks by p (1 - p), where p is
    the success of a task's latest groups: the variance of the reward, and so the size of the
    signal (learnability, arXiv 2502.12272); and it replaces half of the draws by seeds that were
    solved sometimes, by the same weight. "curriculum" takes the tasks in the order given: half of
    the draws are the first task that is not mastered yet, the others go to all before it, too.

    Args:
        names: tasks to draw from.
        kind: one of these.
        seed: of the draws.
    """

    def __init__(self, names: Sequence[str], kind: SamplerKind = "uniform", seed: int = 0) -> None:
        if kind not in get_args(SamplerKind):
            raise ValueError(f"kind must be one of {get_args(SamplerKind)}, got {kind!r}")
        self.names, self.kind, self.seed = list(names), kind, seed
        self._success: dict[Task, float] = {}  # the learnability ones, in the order of their play
        self._rates = dict.fromkeys(self.names, (0.0, 0))  # success, groups seen

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
            names = random.choice(self.names, count, p=self._weights()).tolist()
        tasks = [Task(name, int(seed)) for name, seed in zip(names, seeds, strict=True)]
        if self.kind == "learnability" and self._success:
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
            rate, seen = self._rates.get(group.task.name, (0.0, 0))
            seen = min(seen + 1, RECENT)
            self._rates[group.task.name] = (rate + (p - rate) / seen, seen)
            self._success.pop(group.task, None)
            if 0 < p < 1:
                self._success[group.task] = p
        for task in list(self._success)[:-REMEMBERED]:
            del self._success[task]

    def state(self) -> dict[str, Any]:
        """What `load_state` takes."""
        seeds = [[task.name, task.seed, p] for task, p in self._success.items()]
        return {"seeds": seeds, "rates": self._rates}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._success = {Task(name, seed): p for name, seed, p in state["seeds"]}
        self._rates = dict(state["rates"])

    def _weights(self) -> np.ndarray:
        """How likely each task is drawn, in the order of the names."""
        rates = [self._rates[name] for name in self.names]
        weights = np.ones(len(rates))
        if self.kind == "learnability":
            # None dies out: what is never or always solved keeps a fifth of the highest weight.
            weights = np.array([max(p * (1 - p), 0.05) if seen else 0.25 for p, seen in rates])
        elif self.kind == "curriculum":
            mastered = [seen == RECENT and p >= MASTERED for p, seen in rates]
            newest = mastered.index(False) if False in mastered else len(rates) - 1
            weights = np.where(np.arange(len(rates)) <= newest, 1.0, 0.0) / (newest + 1)
            weights[newest] += 1.0
        return weights / weights.sum()
