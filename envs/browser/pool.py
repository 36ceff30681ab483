"""The browser sessions of a run: on servers that run already, or on one that is started here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import Protocol

from envs.browser.env import BrowserEnv
from envs.browser.server.local import LocalServer
from envs.pool import EnvPool


class BrowserOptions(Protocol):
    """What of a run's configuration concerns its browsers."""

    @property
    def env_urls(self) -> Sequence[str]:
        """Servers, which the sessions go round; none: start one here, when it is needed."""

    @property
    def env_sessions(self) -> int:
        """Sessions at once."""

    @property
    def env_workers(self) -> int:
        """Chromiums of a server started here."""

    @property
    def env_deadline(self) -> float:
        """Seconds until a call counts as failed."""


@asynccontextmanager
async def browser_pool(
    options: BrowserOptions, rank: int = 0, session: type[BrowserEnv] = BrowserEnv
) -> AsyncIterator[EnvPool]:
    """Lend browser sessions for the length of a block; a server started here is closed.

    Args:
        options: which servers, how many sessions.
        rank: of several processes each begins its round of the servers with another one.
        session: what is lent; a subclass may change rewards or prompts.
    """
    # A session that is given up may linger while its successor begins.
    server = LocalServer(options.env_workers, max_sessions=2 * options.env_sessions)
    turns = islice(cycle(options.env_urls), rank, None)

    async def connect() -> BrowserEnv:
        url = next(turns, "") or await server.ensure()
        return session(url, deadline_s=options.env_deadline)

    try:
        async with EnvPool(connect, options.env_sessions) as pool:
            yield pool
    finally:
        await asyncio.to_thread(server.close)
