"""The tree of histories that episodes of one start share; see `envs.replay`.

A node is a history of actions, with the observation that it led to. An action that an episode
takes at a node is executed once, in one environment; others that take it there read the result,
or wait for it. Where histories part, one episode goes on with the environment, and for the others
one is reset and brought to their node by replaying its actions. An environment is held only while
it executes, or for an episode that chooses its next action where the environment is: so no
episode waits for one that waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from envs.base import Refusals, StepResult, Task

if TYPE_CHECKING:
    from envs.replay import CountedEnv, SharingPool

_log = logging.getLogger(__name__)


class NotReproducible(Exception):
    """The episode cannot be shared: play it again, in an environment that nobody shares."""


@dataclass(eq=False)
class _Session:
    """An environment, and its lease.

    Attributes:
        fresh: it was made for an episode that had failed; after that, others may be dead as well.
    """

    env: CountedEnv
    lease: AsyncExitStack
    fresh: bool

    async def __aenter__(self) -> None:
        """Begin a call; the environment is discarded if it fails."""

    async def __aexit__(self, *error: Any) -> None:
        if error[0] is not None:
            await self.lease.__aexit__(*error)


@dataclass(eq=False)
class Node:
    """A history of actions, and what it led to.

    Attributes:
        result: outcome of the last action; of a reset, its observation.
        demonstration: the scripted solver's next action, empty if there is none.
        refusals: refuses invalid actions without an environment; None if that cannot be done.
        parent: the history without the last action; None at the root.
        text: the last action.
        place: where an environment is after this history, and where its episodes go on: here, or
            where they were before, if the last action was refused without an environment.
        children: the nodes that follow, by action; None is the result of a failure.
        idle: environments that are here.
        choosing: number of episodes here that choose their next action.
    """

    result: StepResult
    demonstration: str = ""
    refusals: Refusals | None = None
    parent: Node | None = None
    text: str = ""
    place: Node = field(default=None, repr=False)  # type: ignore[assignment]  # see __post_init__
    children: dict[str, asyncio.Future[Node | None]] = field(default_factory=dict)
    idle: list[_Session] = field(default_factory=list)
    choosing: int = 0

    def __post_init__(self) -> None:
        self.place = self.place or self

    def path(self) -> list[Node]:
        """Return the nodes whose actions lead here from the root."""
        return [] if self.parent is None else [*self.parent.path(), self]


class HistoryTree:
    """The histories of the episodes of one task and seed.

    Args:
        sharing: lends the environments, counts, and knows the tasks that are not shared.
        task: what all of the episodes start from.
    """

    def __init__(self, sharing: SharingPool, task: Task):
        self.task, self.sharing = task, sharing
        self._start: dict[str, asyncio.Future[Node | None]] = {}  # the root, under ""
        self._screenshot = False
        self._places: list[Node] = []

    async def close(self) -> None:
        """Give all environments back."""
        for place in self._places:
            place.choosing = 0
        await self.release_unused()

    async def reset(self, screenshot: bool, fresh: bool) -> Node:
        """Bring an episode to the root.

        Args:
            screenshot: see `Env.reset`.
            fresh: see `EnvPool.lease`.

        Raises:
            NotReproducible: the task is not deterministic.
        """
        if self._start and screenshot != self._screenshot:
            raise ValueError("either all episodes of a start have screenshots, or none")
        self._screenshot = screenshot
        root = await self._once(self._start, "", lambda: self._reset(fresh))
        if not root.result.observation.deterministic:
            self.sharing.unshared.add(self.task.name)
            await self.release_unused()
            raise NotReproducible
        root.choosing += 1
        return root

    async def step(self, place: Node, text: str, fresh: bool) -> Node:
        """Bring an episode from a place to the next node.

        Raises:
            NotReproducible: a replay led elsewhere.
        """
        place.choosing -= 1
        try:
            node = await self._once(place.children, text, lambda: self._step(place, text, fresh))
            node.place.choosing += 1
        finally:
            await self.release_unused()
        return node

    async def leave(self, place: Node) -> None:
        """Take an episode away that is at a place."""
        place.choosing -= 1
        await self.release_unused()

    async def release_unused(self) -> None:
        """Give back the environments that no episode may go on with."""
        for place in self._places:
            while place.idle and not place.choosing:
                await place.idle.pop().lease.aclose()

    async def _once(
        self,
        nodes: dict[str, asyncio.Future[Node | None]],
        text: str,
        execute: Callable[[], Awaitable[Node]],
    ) -> Node:
        """Return a node that is there, that another episode is executing, or that this one does.

        What goes wrong is raised to the episode that executes; another one then tries again.
        """
        while (known := nodes.get(text)) is not None:
            await self.release_unused()
            if (node := await asyncio.shield(known)) is not None:
                self.sharing.counters["steps_shared"] += node.parent is not None
                return node
        nodes[text] = future = asyncio.get_running_loop().create_future()
        try:
            node = await execute()
        except BaseException:
            del nodes[text]
            future.set_result(None)
            raise
        future.set_result(node)
        return node

    async def _reset(self, fresh: bool) -> Node:
        session = await self._lease(fresh)
        async with session:
            observation = await session.env.reset(self.task, screenshot=self._screenshot)
        return self._node(session, StepResult(observation, reward=0.0, done=False))

    async def _step(self, place: Node, text: str, fresh: bool) -> Node:
        refused = place.refusals(text) if place.refusals else None
        if refused is not None:
            return Node(refused, place.demonstration, place=place)
        session = next((idle for idle in place.idle if idle.fresh >= fresh), None)
        if session is None:
            session = await self._replay(place, fresh)
        else:
            place.idle.remove(session)
        async with session:
            result = await session.env.step(text)
        if not result.done:
            return self._node(session, result, place, text)
        await session.lease.aclose()
        return Node(result, parent=place, text=text)

    def _node(
        self, session: _Session, result: StepResult, parent: Node | None = None, text: str = ""
    ) -> Node:
        env = session.env
        node = Node(result, env.demonstrate(), env.refusals(), parent, text, idle=[session])
        self._places.append(node)
        return node

    async def _replay(self, place: Node, fresh: bool) -> _Session:
        """Bring another environment to a place.

        Raises:
            NotReproducible: it led elsewhere, now or before.
        """
        root, path = await self._start[""], place.path()
        assert root is not None
        await self.release_unused()
        session = await self._lease(fresh)
        async with session:
            observation = await session.env.reset(self.task, screenshot=self._screenshot)
            same = _alike(StepResult(observation, reward=0.0, done=False), root.result)
            for past in path:
                same = same and _alike(await session.env.step(past.text), past.result)
        if same:
            return session
        await session.lease.aclose()
        self.sharing.counters["replay_mismatches"] += 1
        self.sharing.unshared.add(self.task.name)
        _log.warning(
            "task %s is not deterministic: equal actions led to another page with seed %d after "
            "%d actions; its episodes are no longer shared",
            *(self.task.name, self.task.seed, len(path)),
        )
        raise NotReproducible

    async def _lease(self, fresh: bool) -> _Session:
        if self.task.name in self.sharing.unshared:
            raise NotReproducible
        lease = AsyncExitStack()
        env = await lease.enter_async_context(self.sharing.lease(fresh=fresh))
        return _Session(env, lease, fresh)


def _alike(result: StepResult, recorded: StepResult) -> bool:
    """Tell whether a replayed action led where it had led: texts and verdict, not the address."""

    def essence(result: StepResult) -> tuple[object, ...]:
        observation = result.observation
        texts = observation.goal, observation.page, observation.error
        return *texts, result.reward, result.done, result.success, result.valid_action

    return essence(result) == essence(recorded)
