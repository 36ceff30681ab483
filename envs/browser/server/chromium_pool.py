"""A fixed number of Chromiums, the sessions in them, and the handling of failures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from typing import Any

from envs.base import TaskError
from envs.browser.miniwob.files import miniwob_url
from envs.browser.server.cdp.chromium import CDPError, Chromium
from envs.browser.server.cdp.page import Page
from envs.browser.server.chromium import CHROMIUM_ARGS, find_chromium
from envs.browser.server.session import Session, SessionError

CLOSE_DEADLINE_S = 10.0
START_DEADLINE_S = 30.0
WATCH_INTERVAL_S = 5.0
HEARTBEAT_S = 15.0
"""Seconds after which a Chromium that does not report its version counts as hanging."""


class Slot:
    """The slot of one Chromium, which is restarted when it is gone.

    Attributes:
        sessions: sessions with a page in this Chromium.
    """

    def __init__(self) -> None:
        self.sessions: set[PooledSession] = set()
        self._chromium: Chromium | None = None
        self._starting = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """True while the Chromium runs."""
        return self._chromium is not None and self._chromium.alive

    async def browser(self) -> Chromium:
        """Return the Chromium, started if it does not run.

        Raises:
            CDPError: it does not start, or not in time.
        """
        async with self._starting:
            if self._chromium is None or not self._chromium.alive:
                await self.stop()
                # Chromium does not start with its sandbox as root.
                root = hasattr(os, "geteuid") and os.geteuid() == 0
                arguments = [*CHROMIUM_ARGS, *(["--no-sandbox"] if root else [])]
                chromium = Chromium([find_chromium(), *arguments])
                try:
                    async with asyncio.timeout(START_DEADLINE_S):
                        await chromium.start()
                except TimeoutError:
                    path, deadline = chromium.command[0], START_DEADLINE_S
                    raise CDPError(f"{path} did not respond within {deadline:g} s") from None
                self._chromium = chromium
            return self._chromium

    async def check(self) -> None:
        """Stop the Chromium if it hangs; start it if it does not run."""
        with contextlib.suppress(CDPError, TimeoutError):  # tried again at the next check
            browser = await self.browser()
            try:
                await asyncio.wait_for(browser.send("Browser.getVersion"), HEARTBEAT_S)
            except TimeoutError:
                await browser.stop()

    async def stop(self) -> None:
        """Stop the Chromium; its sessions are lost."""
        chromium, self._chromium = self._chromium, None
        if chromium is not None:
            await chromium.stop()


class ChromiumPool:
    """A fixed number of Chromiums; a session stays in one of them. Created in an event loop.

    Args:
        browsers: number of Chromiums.
        deadline_s: seconds that a reset or a step may take.
        idle_s: seconds after which an unused session is closed.

    Attributes:
        slots: one per Chromium.
    """

    def __init__(self, browsers: int, *, deadline_s: float, idle_s: float):
        self.slots = [Slot() for _ in range(browsers)]
        self.deadline_s = deadline_s
        self.idle_s = idle_s
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start every Chromium."""
        await asyncio.gather(*(slot.browser() for slot in self.slots))
        self.run(self._watch())

    def open(self) -> PooledSession:
        """Open a session in the Chromium that has the fewest."""
        slot = min(self.slots, key=lambda one: len(one.sessions))
        return PooledSession(self, slot)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a background coroutine, which is cancelled when the pool stops."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def ready(self) -> bool:
        """True while every Chromium runs."""
        return all(slot.alive for slot in self.slots)

    async def stop(self) -> None:
        """Stop every Chromium."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*(slot.stop() for slot in self.slots))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle_s / 4, WATCH_INTERVAL_S))
            for slot in self.slots:
                for session in list(slot.sessions):
                    if session.idle_for() > self.idle_s:
                        session.discard(f"unused for {self.idle_s:g} s")
            await asyncio.gather(*(slot.check() for slot in self.slots))


class PooledSession:
    """One session with deadlines; after one failure it is lost.

    Created in any thread, called in the pool's event loop.
    """

    def __init__(self, pool: ChromiumPool, slot: Slot):
        self._pool, self._slot = pool, slot
        self._session: Session | None = None
        self._lost = ""
        self._busy = False
        self._used = time.monotonic()
        slot.sessions.add(self)

    def idle_for(self) -> float:
        """Return the seconds since the last call ended, 0 during a call."""
        return 0.0 if self._busy else time.monotonic() - self._used

    async def call(self, method: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Await `Session.reset` or `Session.step`.

        Raises:
            TaskError: there is no such task.
            SessionError: the session is lost or busy, or no episode is running.
        """
        if self._lost:
            raise SessionError(f"the session is lost ({self._lost}): open a new one")
        if self._busy:
            raise SessionError("the session is busy with another call")
        self._busy = True
        try:
            async with asyncio.timeout(self._pool.deadline_s):
                if self._session is None:
                    self._session = Session(Page(await self._slot.browser(), miniwob_url()))
                    await self._session.page.open()  # a failure loses the session
                result: dict[str, Any] = await getattr(self._session, method)(*args, **options)
                return result
        except (TaskError, SessionError):
            raise
        except TimeoutError:
            self.discard(f"no response within {self._pool.deadline_s:g} s")
        except CDPError as error:
            self.discard(str(error))
        except asyncio.CancelledError:
            self.discard("a call was cancelled")
            raise
        finally:
            self._busy, self._used = False, time.monotonic()
        raise SessionError(f"the session is lost: {self._lost}")

    def discard(self, reason: str) -> None:
        """Give up the session and close its page in the background."""
        self._lost = self._lost or reason
        self._slot.sessions.discard(self)
        session, self._session = self._session, None
        if session is not None:
            self._pool.run(self._close(session.page))

    def close(self) -> None:
        """Give up the session; may be called in any thread."""
        self._pool.loop.call_soon_threadsafe(self.discard, "it was closed")

    async def _close(self, page: Page) -> None:
        try:
            await asyncio.wait_for(page.close(), CLOSE_DEADLINE_S)
        except CDPError:
            pass  # the browser is gone, and the page with it
        except TimeoutError:
            # A browser that cannot close a page hangs, and so do its other pages.
            await page.browser.stop()
