"""Success rates on held-out seeds, with the baselines that give them a meaning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from envs.base import EnvError, Observation, Task
from grpo.rollouts.rollout import Act, Rollouts, gather
from grpo.types import Completion, Episode


class Outcome(NamedTuple):
    """What an evaluation keeps of an episode: its task, whether it succeeded, its answers."""

    task: Task
    success: bool
    steps: int


@dataclass(frozen=True)
class Success:
    """A success rate with its 95 % interval.

    Attributes:
        success: successes over n, the rate.
        low: lower end of the Wilson interval.
        high: upper end.
        n: episodes that were played to an end; dropped ones do not count.
        solved: of these, how many succeeded.
        steps: mean number of answers an episode.
    """

    success: float
    low: float
    high: float
    n: int
    solved: int
    steps: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Success:
        """The rate over episodes, perhaps of several tasks or ranks."""
        outcomes = list(outcomes)
        n, solved = len(outcomes), sum(outcome.success for outcome in outcomes)
        steps = sum(outcome.steps for outcome in outcomes) / n if n else 0.0
        return cls(solved / n if n else 0.0, *wilson_interval(solved, n), n, solved, steps)


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n), with p = successes / n. Unlike
    p ± z sqrt(p (1 - p) / n) it is not empty at p = 1.

    Args:
        successes: number of successes, 0 to n.
        n: number of trials; with none the interval is [0, 1].
        z: standard normal quantile; the default gives 95 %.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n={n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-17.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return low, high


async def random_agent(observation: Observation, seed: int) -> tuple[str, Completion]:
    """Choose any action the page allows, each as likely as the others."""
    random = np.random.default_rng(seed)
    text = str(random.choice(observation.actions)) if observation.actions else "noop()"
    return text, Completion((), (), (), policy_version=-1, finish_reason="stop")


def blind(act: Act) -> Act:
    """The same policy with every page hidden: what it knows without reading."""

    async def guess(observation: Observation, seed: int) -> tuple[str, Completion]:
        return await act(observation.hide(), seed)

    return guess


async def evaluate(
    ways: Mapping[str, Rollouts], tasks: Sequence[Task], *, seed: int = 0
) -> dict[str, list[Outcome]]:
    """Play one episode a task and way, the ways side by side: they read the same pages.

    Args:
        ways: how episodes are played, the policy included; they may share a pool.
        tasks: held-out ones.
        seed: fixes what is sampled.

    Returns:
        Of each way the outcomes; without the episodes that the machinery lost.

    Raises:
        EnvError: not one episode of a way could be played.
    """
    episodes: list[Episode | None] = await gather(
        rollouts.episode(task, [seed, task.seed]) for task in tasks for rollouts in ways.values()
    )
    outcomes: dict[str, list[Outcome]] = {}
    for i, (way, rollouts) in enumerate(ways.items()):
        played = [episode for episode in episodes[i :: len(ways)] if episode is not None]
        if tasks and not played:
            raise EnvError(f"no episode could be played; the last error: {rollouts.last_error}")
        outcomes[way] = [Outcome(e.task, e.success, len(e.turns)) for e in played]
    return outcomes
