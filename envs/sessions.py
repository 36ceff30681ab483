"""The browser sessions of a run: on servers that run already, or on one that is started here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import cycle, islice

from envs.browsergym import BrowserGymEnv
from envs.pool import EnvPool
from envs.server.local import LocalServer

Sessions = Callable[..., AbstractAsyncContextManager[EnvPool]]
"""Opens a pool of sessions for the length of a block; `hide_page=True` for the blind control."""


@asynccontextmanager
async def browser_sessions(
    urls: Sequence[str] = (),
    *,
    size: int,
    workers: int = 2,
    deadline_s: float = 30.0,
    first: int = 0,
) -> AsyncIterator[Sessions]:
    """Yield a function that opens pools of browser sessions; a server started here is closed.

    Args:
        urls: servers, which the sessions go round; none: start one here, when it is needed.
        size: sessions of a pool; of a server started here three pools may be open at once:
            two evaluations side by side while training's sessions idle.
        workers: Chromiums of the server started here.
        deadline_s: seconds until a call counts as failed.
        first: which of the servers the first session goes to.
    """
    server = LocalServer(workers, max_sessions=3 * size)
    turns = islice(cycle(urls), first, None)

    @asynccontextmanager
    async def sessions(*, hide_page: bool = False) -> AsyncIterator[EnvPool]:
        async def session() -> BrowserGymEnv:
            url = next(turns, "") or await server.ensure()
            return BrowserGymEnv(url, deadline_s=deadline_s, hide_page=hide_page)

        pool = EnvPool(session, size)
        try:
            yield pool
        finally:
            await pool.close()

    try:
        yield sessions
    finally:
        await asyncio.to_thread(server.close)
