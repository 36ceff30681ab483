"""Who demonstrates in a warm start: a file's demonstrations, or the tasks' scripted solvers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from envs.base import Task
from envs.demonstrations import Demonstration
from envs.replay import Pool
from grpo.model.chat import ChatTemplate
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.demonstrations import ENOUGH, DemonstrationSampler, replay, split_held_out
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts
from grpo.rollouts.task_sampler import HELD_OUT, TaskSampler
from grpo.types import Episode

if TYPE_CHECKING:
    from grpo.config import Config

Played = tuple[list[Episode | None], str]
"""Episodes, None for each that the infrastructure lost, and why one of them failed."""

Shown = tuple[str, int, tuple[str, ...]]
"""Task, seed and actions of a demonstration."""

Size = tuple[str, int]
"""Task and distinct tokens of a demonstration."""

MOST_HELD_OUT = 64
"""Episodes of a scripted solver that are not imitated."""

_log = logging.getLogger(__name__)


class Demonstrator(Protocol):
    """Plays demonstrations; `mine` is this rank's share of those of all ranks.

    Attributes:
        imitated: what it draws from; equal ones draw the same.
    """

    imitated: list[Shown]

    async def play(self, step: int, count: int, mine: slice) -> Played:
        """Play the `count` demonstrations of a step, from 0 on."""

    async def play_held_out(self, mine: slice) -> Played:
        """Play the demonstrations that no step has."""

    def observe(self, episodes: Iterable[Size]) -> None:
        """Note the sizes of what all ranks have played in a step."""

    def state(self) -> Any:
        """Return what later draws depend on."""

    def load_state(self, state: Any) -> None:
        """Restore what `state` returned."""


class Recorded:
    """Plays recorded demonstrations again, and names each one that fails, once."""

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        config: Config,
        pool: Pool,
        chat: ChatTemplate,
        max_prompt_tokens: int = 0,
    ) -> None:
        """Choose those that are held out, see `split_held_out`.

        Args:
            demonstrations: at least one.
            config: of the run.
            pool: the environments.
            chat: makes the tokens to imitate.
            max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`.
        """
        self._pool, self._chat, self._max_prompt_tokens = pool, chat, max_prompt_tokens
        part, seed = config.imitation_held_out, config.seed
        imitated, self._held_out = split_held_out(demonstrations, part, seed)
        self._sampler = DemonstrationSampler(imitated, seed)
        self.imitated: list[Shown] = [
            (each.task.name, each.task.seed, each.actions) for each in imitated
        ]
        self._told: set[Demonstration] = set()

    async def play(self, step: int, count: int, mine: slice) -> Played:
        """Play those of a step, each as the variant of its epoch."""
        return await self._play(self._sampler.draw(step, count)[mine])

    async def play_held_out(self, mine: slice) -> Played:
        """Play those that are held out."""
        return await self._play((each, each.task) for each in self._held_out[mine])

    def observe(self, episodes: Iterable[Size]) -> None:
        """Note nothing: an epoch has them all."""

    def state(self) -> None:
        """Return nothing: a step determines its draws."""

    def load_state(self, state: None) -> None:
        """Restore nothing."""

    async def _play(self, drawn: Iterable[tuple[Demonstration, Task]]) -> Played:
        replays = await gather(
            replay(self._pool, demonstration, task, self._chat, self._max_prompt_tokens)
            for demonstration, task in drawn
        )
        failed = [each for each in replays if each.error]
        for each in failed:
            if each.demonstration not in self._told:
                self._told.add(each.demonstration)
                task = each.demonstration.task
                _log.warning("not imitated: %s, seed %d: %s", task.name, task.seed, each.error)
        return [each.episode for each in replays], failed[0].error if failed else ""


class Scripted:
    """Plays the environment's scripted solver (see `envs.base.Demonstrator`).

    On training seeds, and held out on seeds of evaluations. The probability of a task falls with
    the square root of its demonstrations' tokens, by what was played so far: otherwise the few
    tasks with long pages, or many turns, would take most of the time of all tasks together.
    """

    def __init__(
        self,
        count: int,
        config: Config,
        pool: Pool,
        chat: ChatTemplate,
        max_prompt_tokens: int = 0,
    ) -> None:
        """Make the solver's agent.

        Args:
            count: episodes that all steps have together, of which a part is held out.
            config: of the run.
            pool: the environments.
            chat: makes the tokens to imitate.
            max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`.
        """
        self.imitated: list[Shown] = []  # whatever the seed draws
        self._rollouts = Rollouts(pool, oracle_agent(chat, max_prompt_tokens), config.max_turns)
        self._sampler = TaskSampler(config.task)
        self._sizes: dict[str, list[int]] = {}  # tokens and demonstrations of each task
        part = config.imitation_held_out if count >= ENOUGH else 0.0
        held_out = min(MOST_HELD_OUT, round(part * count))
        every = [Task(name, HELD_OUT + i) for i in range(held_out) for name in config.task]
        self._held_out = every[:held_out]

    async def play(self, step: int, count: int, mine: slice) -> Played:
        """Play the episodes of a step."""
        return await self._play(self._sampler.draw(step, count, weights=self._weights())[mine])

    async def play_held_out(self, mine: slice) -> Played:
        """Play the episodes that are held out."""
        return await self._play(self._held_out[mine])

    def observe(self, episodes: Iterable[Size]) -> None:
        """Note how long the demonstrations of each task are."""
        for name, tokens in episodes:
            total, count = self._sizes.get(name, (0, 0))
            self._sizes[name] = [total + tokens, count + 1]

    def state(self) -> dict[str, list[int]]:
        """Return tokens and number of each task's demonstrations."""
        return self._sizes

    def load_state(self, state: dict[str, list[int]]) -> None:
        """Restore what `state` returned."""
        self._sizes = {name: [int(total), int(count)] for name, (total, count) in state.items()}

    def _weights(self) -> list[float]:
        """Return 1 / sqrt(tokens) of each task; one that was never played counts as the median."""
        means = {name: total / count for name, (total, count) in self._sizes.items()}
        usual = median(means.values()) if means else 1.0
        return [means.get(name, usual) ** -0.5 for name in self._sampler.names]

    async def _play(self, tasks: Sequence[Task]) -> Played:
        episodes = await gather(self._rollouts.episode(task, [0]) for task in tasks)
        return episodes, self._rollouts.last_error
