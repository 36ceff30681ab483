"""Success rates on held-out seeds, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import sqrt
from typing import NamedTuple, TypeVar

from envs.base import EnvError, Task
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import OnEpisode, Rollouts, ignore_episode
from grpo.types import Episode

Name = TypeVar("Name")


class Outcome(NamedTuple):
    """What an evaluation keeps of an episode."""

    task: Task
    success: bool
    turns: int
    verdicts: Mapping[str, bool] = {}

    @classmethod
    def of(cls, episode: Episode) -> Outcome:
        """Return the outcome of an episode."""
        return cls(episode.task, episode.success, len(episode.turns), episode.verdicts)


@dataclass(frozen=True)
class Success:
    """A success rate with its 95 % interval.

    Attributes:
        success: the rate, solved / n.
        low: lower end of the Wilson interval.
        high: upper end.
        n: number of episodes that were played to an end; dropped ones do not count.
        solved: how many of these succeeded.
        turns: mean number of completions per episode.
        verdicts: rates of success by other rules, which every episode has (`Episode.verdicts`).
    """

    success: float
    low: float
    high: float
    n: int
    solved: int
    turns: float
    verdicts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Success:
        """Compute the rate over episodes, perhaps of several tasks or ranks."""
        outcomes = list(outcomes)
        n, solved = len(outcomes), sum(outcome.success for outcome in outcomes)
        turns = sum(outcome.turns for outcome in outcomes) / n if n else 0.0
        names = set.intersection(*(set(outcome.verdicts) for outcome in outcomes)) if n else set()
        verdicts = {name: sum(e.verdicts[name] for e in outcomes) / n for name in sorted(names)}
        rate = solved / n if n else 0.0
        return cls(rate, *wilson_interval(solved, n), n, solved, turns, verdicts)

    def to_dict(self) -> dict[str, float]:
        """Return what a summary holds: the fields, with each of the verdicts as one of them."""
        fields = asdict(self)
        verdicts: dict[str, float] = fields.pop("verdicts")
        return fields | verdicts


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion (Wilson 1927).

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


async def evaluate(
    agents: Mapping[Name, Rollouts],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    on_episode: OnEpisode = ignore_episode,
) -> dict[Name, list[Outcome]]:
    """Play one episode per task and agent, all side by side: they read the same pages.

    What they do is kept, so that a later evaluation executes only what is new.

    Args:
        agents: rollouts by their name, e.g. "sampled" and "greedy", over one pool.
        tasks: held-out tasks.
        seed: determines what is sampled.
        on_episode: called after each episode.

    Returns:
        The outcomes by agent, without the episodes that the infrastructure lost.

    Raises:
        EnvError: not one episode of an agent could be played.
    """

    async def play(task: Task) -> list[Episode | None]:
        pool = next(iter(agents.values())).pool
        async with pool.share(task, keep=True) as lender:
            return await gather(
                rollouts.episode(task, [seed, task.seed], on_episode=on_episode, lender=lender)
                for rollouts in agents.values()
            )

    episodes = await gather(play(task) for task in tasks)
    outcomes: dict[Name, list[Outcome]] = {}
    for i, (name, rollouts) in enumerate(agents.items()):
        played = [episode for of_task in episodes if (episode := of_task[i]) is not None]
        if tasks and not played:
            raise EnvError(f"no episode could be played; the last error: {rollouts.last_error}")
        outcomes[name] = [Outcome.of(episode) for episode in played]
    return outcomes
