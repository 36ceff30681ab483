"""A bounded set of environments, each lent to one episode at a time."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Self

from envs.base import Env, Task

_log = logging.getLogger(__name__)


class EnvPool:
    """Lends environments; one whose lease ended in an exception is closed and never reused.

    Deadlines are up to the environments: one that hangs raises EnvError and is discarded here.
    As a context manager the pool is closed at the end of the block.

    Args:
        factory: makes an environment; may be a coroutine function.
        size: maximum number of environments lent at a time.

    Attributes:
        created: environments made so far.
        discarded: environments closed because their lease ended in an exception.
        counters: counts of a pool whose environments are shared; empty here.
    """

    def __init__(self, factory: Callable[[], Env | Awaitable[Env]], size: int):
        if not isinstance(size, int):
            raise TypeError(f"size must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if not callable(factory):
            raise TypeError(f"factory must be a class or a function, got {factory!r:.80}")
        self.size = size
        self.created = 0
        self.discarded = 0
        self.counters: Counter[str] = Counter()
        self._factory = factory
        self._slots = asyncio.Semaphore(size)
        self._idle: deque[Env] = deque()
        self._closed = False

    @asynccontextmanager
    async def lease(self, *, fresh: bool = False) -> AsyncIterator[Env]:
        """Lend an environment for the length of the block, an idle one if there is one.

        Args:
            fresh: True for a new one; after a failure the idle ones may be dead as well.

        Raises:
            RuntimeError: the pool is closed.
        """
        async with self._slots:
            if self._closed:
                raise RuntimeError(
                    "cannot lend an environment: the pool was closed, by close() or at the end of "
                    "its `async with` block; make a new one"
                )
            # The one that has been idle longest: a page that is left alone may be busy for ever.
            idle = self._idle.popleft() if self._idle else None
            if idle is not None and fresh:
                await self._close_env(idle)  # never more than `size` exist
                idle = None
            env = idle or await self._create()
            try:
                yield env
            except BaseException:
                self.discarded += 1
                await self._close_env(env)
                raise
            if self._closed:
                await self._close_env(env)
            else:
                self._idle.append(env)

    def share(self, task: Task, *, keep: bool = False) -> AbstractAsyncContextManager[Self]:
        """Return what lends to the episodes of one start: this pool; see `envs.replay`."""
        return nullcontext(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the idle environments now, and the lent ones when they are returned."""
        self._closed = True
        idle, self._idle = self._idle, deque()
        await asyncio.gather(*map(self._close_env, idle))

    async def _create(self) -> Env:
        made = self._factory()
        env = await made if inspect.isawaitable(made) else made
        self.created += 1
        return env

    async def _close_env(self, env: Env) -> None:
        try:
            await asyncio.shield(env.close())  # also when the lease was cancelled
        except Exception:
            # The exception that ended the lease is raised, not this one.
            _log.warning("an environment failed to close", exc_info=True)
