"""Episodes of one start do once what they do alike (DESIGN.md, decision 12).

This is exact for a task of which equal actions always lead to equal observations, as
`Observation.deterministic` promises. Each replay is compared with what was recorded: where they
differ, the task is not shared for the rest of the run. `envs.history_tree` is how it works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envs.base import (
    Demonstrator,
    Env,
    Formatter,
    Observation,
    Refusals,
    Refuser,
    Renumberer,
    StepResult,
    Task,
)
from envs.history_tree import HistoryTree, Node, NotReproducible
from envs.pool import EnvPool

__all__ = ["Lender", "NotReproducible", "Pool", "SharedStart", "SharingPool"]


class SharingPool:
    """Lends environments of a pool, and shares what episodes of one start do alike.

    Args:
        pool: the environments.

    Attributes:
        unshared: names of tasks that are not deterministic, or turned out not to be.
        counters: `episodes_executed`, resets of environments; `steps_executed`, actions that an
            environment executed, replayed ones included; `steps_shared`, actions whose result
            another episode had; `replay_mismatches`, replays that led elsewhere.
    """

    def __init__(self, pool: EnvPool):
        self.pool = pool
        self.unshared: set[str] = set()
        self.counters = Counter(
            episodes_executed=0, steps_executed=0, steps_shared=0, replay_mismatches=0
        )
        self._kept: dict[Task, HistoryTree] = {}

    @asynccontextmanager
    async def lease(self, *, fresh: bool = False) -> AsyncIterator[CountedEnv]:
        """Lend an environment that nobody shares; see `EnvPool.lease`."""
        async with self.pool.lease(fresh=fresh) as env:
            yield CountedEnv(env, self.counters)

    @asynccontextmanager
    async def share(
        self, task: Task, *, keep: bool = False
    ) -> AsyncIterator[SharingPool | SharedStart]:
        """Return what lends to the episodes of one start, for the length of the block.

        Args:
            task: what all of these episodes start from.
            keep: True to keep what they did for the next block that shares this task: its pages as
                text, without environments. Evaluations play the same held-out seeds again.
        """
        if task.name in self.unshared:
            yield self
            return
        tree = self._kept.pop(task, None) or HistoryTree(self, task)
        try:
            yield SharedStart(tree)
            if keep:
                self._kept[task] = tree
        finally:
            await tree.close()


class SharedStart:
    """Lends environments to the episodes of one start; see `SharingPool.share`."""

    def __init__(self, tree: HistoryTree):
        self._tree = tree

    @asynccontextmanager
    async def lease(self, *, fresh: bool = False) -> AsyncIterator[Env]:
        """Lend an environment for one episode; see `EnvPool.lease`.

        Its `reset` and `step` raise `NotReproducible` where the task turns out not to be
        deterministic: the episode is then to be played in an environment that nobody shares.
        """
        env = _SharedEnv(self._tree, fresh)
        try:
            yield env
        finally:
            await env.close()


class _SharedEnv:
    """The environment of one episode among those of its start."""

    def __init__(self, tree: HistoryTree, fresh: bool):
        self._tree, self._fresh = tree, fresh
        self._node: Node | None = None

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        if task != self._tree.task:
            raise ValueError(f"this environment is for {self._tree.task}, got {task}")
        await self.close()
        self._node = await self._tree.reset(screenshot, self._fresh)
        return self._node.result.observation

    async def step(self, text: str) -> StepResult:
        node, self._node = self._node, None
        if node is None or node.result.done:
            raise RuntimeError("no episode is running: call reset first")
        self._node = await self._tree.step(node.place, text, self._fresh)
        return self._node.result

    def demonstrate(self) -> str:
        return self._node.demonstration if self._node else ""

    async def close(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            await self._tree.leave(node.place)


class CountedEnv:
    """An environment whose resets and steps are counted."""

    def __init__(self, env: Env, counters: Counter[str]):
        self.env, self._counters = env, counters

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        observation = await self.env.reset(task, screenshot=screenshot)
        self._counters["episodes_executed"] += 1
        return observation

    async def step(self, text: str) -> StepResult:
        result = await self.env.step(text)
        self._counters["steps_executed"] += 1
        return result

    def demonstrate(self) -> str:
        return self.env.demonstrate() if isinstance(self.env, Demonstrator) else ""

    def renumbered(self, text: str) -> str:
        return self.env.renumbered(text) if isinstance(self.env, Renumberer) else text

    def read_action(self, text: str) -> tuple[str, str]:
        return self.env.read_action(text) if isinstance(self.env, Formatter) else (text, "")

    def write_action(self, action: str, thought: str = "") -> str:
        env = self.env
        return env.write_action(action, thought) if isinstance(env, Formatter) else action

    def refusals(self) -> Refusals | None:
        return self.env.refusals() if isinstance(self.env, Refuser) else None

    async def close(self) -> None:
        await self.env.close()


Pool = EnvPool | SharingPool
Lender = EnvPool | SharingPool | SharedStart
"""What lends the environment of an episode."""
