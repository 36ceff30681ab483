"""A fixed number of Chromiums, the sessions in them, and the handling of failures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

from envs.base import TaskError
from envs.browser.browsergym_task import BrowserGymTask, is_browsergym_task
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.tasks import find_task
from envs.browser.server.browsergym_session import BrowserGymSession
from envs.browser.server.cdp.chromium import Chromium
from envs.browser.server.cdp.page import Page
from envs.browser.server.chromium import MINIWOB_ARGS, chromium_args, find_chromium
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.playwright.browser import PlaywrightChromium, spare_stack
from envs.browser.server.playwright.page import Page as PlaywrightPage
from envs.browser.server.session import Session
from envs.browser.server.sites import Sites
from envs.browser.server.web_session import WebSession
from envs.browser.task_file import TaskFile

Driver = Literal["cdp", "playwright"]
Kind = Literal["miniwob", "site", "browsergym"]

CLOSE_DEADLINE_S = 10.0
START_DEADLINE_S = 30.0
WATCH_INTERVAL_S = 5.0
HEARTBEAT_S = 15.0
"""Seconds after which a Chromium that does not report its version counts as hanging."""


class Browser(Protocol):
    """A Chromium under one of the two drivers."""

    alive: bool

    async def start(self) -> None:
        """Start it and wait until it responds."""

    async def ping(self) -> None:
        """Wait until it responds."""

    async def stop(self) -> None:
        """Kill it, and everything that it started."""


def cdp_chromium() -> Chromium:
    """Return a Chromium for MiniWoB's pages."""
    return Chromium([find_chromium(), *chromium_args(), *MINIWOB_ARGS])


class Slot:
    """The slot of one Chromium, which is restarted when it is gone.

    Args:
        make: returns a Chromium that is not started.

    Attributes:
        sessions: sessions with a page in this Chromium.
    """

    def __init__(self, make: Callable[[], Browser] = cdp_chromium) -> None:
        self.sessions: set[PooledSession] = set()
        self._make = make
        self._chromium: Browser | None = None
        self._starting = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """True while the Chromium runs."""
        return self._chromium is not None and self._chromium.alive

    async def browser(self) -> Any:
        """Return the Chromium, started if it does not run.

        Raises:
            BrowserError: it does not start, or not in time.
        """
        async with self._starting:
            if self._chromium is None or not self._chromium.alive:
                await self.stop()
                chromium = self._make()
                try:
                    async with asyncio.timeout(START_DEADLINE_S):
                        await chromium.start()
                except TimeoutError:
                    path, deadline = find_chromium(), START_DEADLINE_S
                    raise BrowserError(f"{path} did not respond within {deadline:g} s") from None
                self._chromium = chromium
            return self._chromium

    async def check(self) -> None:
        """Stop the Chromium if it hangs; start it if it does not run."""
        with contextlib.suppress(BrowserError, TimeoutError):  # tried again at the next check
            browser = await self.browser()
            try:
                await asyncio.wait_for(browser.ping(), HEARTBEAT_S)
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
        task_file: the user's own tasks; None for none.
        driver: the driver of MiniWoB's pages.

    Attributes:
        slots: one per Chromium of the driver whose tasks are served first. The first session with a
            task for the other driver starts as many of that one.
    """

    def __init__(
        self,
        browsers: int,
        *,
        deadline_s: float,
        idle_s: float,
        task_file: TaskFile | None = None,
        driver: Driver = "cdp",
    ):
        self.deadline_s = deadline_s
        self.idle_s = idle_s
        self.task_file = task_file
        self.sites = None if task_file is None else Sites(task_file)
        self.driver: Driver = driver
        self._all: dict[Driver, list[Slot]] = {
            "cdp": [Slot() for _ in range(browsers)],
            "playwright": [Slot(PlaywrightChromium) for _ in range(browsers)],
        }
        self.slots = self._all["playwright" if task_file else driver]
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Start the Chromiums, and the sites that all sessions share."""
        await asyncio.gather(*(slot.browser() for slot in self.slots))
        if self.sites is not None:
            await self.sites.start_shared()
        self.run(self._watch())

    def open(self) -> PooledSession:
        """Open a session in the Chromium that has the fewest."""
        return PooledSession(self, _emptiest(self.slots))

    def kind(self, task_name: str) -> Kind:
        """Return the kind of session that a task needs.

        Raises:
            TaskError: there is no such task; the message lists close names.
        """
        own = self.task_file.tasks.get(task_name) if self.task_file else None
        if own is not None:
            return "browsergym" if isinstance(own, BrowserGymTask) else "site"
        if is_browsergym_task(task_name):
            return "browsergym"
        try:
            find_task(task_name)
        except TaskError:
            if self.task_file is None:
                raise
            self.task_file.find(task_name)  # its names are closer
        return "miniwob"

    def slot(self, kind: Kind, slot: Slot) -> Slot:
        """Return the slot for a session of this kind that has been in another one."""
        driver: Driver = "playwright" if kind == "site" else self.driver
        slots = self._all[driver]
        return slot if slot in slots or kind == "browsergym" else _emptiest(slots)

    async def session(self, kind: Kind, slot: Slot) -> Session | WebSession | BrowserGymSession:
        """Return a session that is not open yet."""
        if kind == "browsergym":
            path = self.task_file.path if self.task_file else None
            return BrowserGymSession(path, deadline_s=self.deadline_s)
        if kind == "site":
            assert self.task_file is not None
            assert self.sites is not None
            return WebSession(await slot.browser(), self.task_file, self.sites)
        page = PlaywrightPage if self.driver == "playwright" else Page
        return Session(page(await slot.browser(), miniwob_url()))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a background coroutine, which is cancelled when the pool stops."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def ready(self) -> bool:
        """True while every Chromium of `slots` runs."""
        return all(slot.alive for slot in self.slots)

    async def stop(self) -> None:
        """Stop every Chromium, every session's own processes, and the sites."""
        for task in list(self._tasks):
            task.cancel()
        slots = [slot for some in self._all.values() for slot in some]
        for session in [session for slot in slots for session in slot.sessions]:
            session.discard("the server stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(slot.stop() for slot in slots))
        if self.sites is not None:
            await asyncio.to_thread(self.sites.stop)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle_s / 4, WATCH_INTERVAL_S))
            used = [
                slot
                for some in self._all.values()
                for slot in some
                if some is self.slots or slot.sessions
            ]
            for slot in used:
                for session in list(slot.sessions):
                    if session.idle_for() > self.idle_s:
                        session.discard(f"unused for {self.idle_s:g} s")
            await asyncio.gather(*(slot.check() for slot in used))


def _emptiest(slots: list[Slot]) -> Slot:
    return min(slots, key=lambda one: len(one.sessions))


class PooledSession:
    """One session with deadlines; after one failure it is lost.

    Created in any thread, called in the pool's event loop.
    """

    def __init__(self, pool: ChromiumPool, slot: Slot):
        self._pool, self._slot = pool, slot
        self._session: Session | WebSession | BrowserGymSession | None = None
        self._kind: Kind | None = None
        self._lost = ""
        self._busy = False
        self._used = time.monotonic()
        slot.sessions.add(self)

    def idle_for(self) -> float:
        """Return the seconds since the last call ended, 0 during a call."""
        return 0.0 if self._busy else time.monotonic() - self._used

    async def call(self, method: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Await `reset` or `step` of a session of the kind that the task needs.

        Raises:
            TaskError: there is no such task, or its own code failed.
            SessionError: the session is lost or busy, or no episode is running.
        """
        if self._lost:
            raise SessionError(f"the session is lost ({self._lost}): open a new one")
        if self._busy:
            raise SessionError("the session is busy with another call")
        self._busy = True
        try:
            async with asyncio.timeout(self._pool.deadline_s):
                spare_stack()
                if method == "reset":
                    await self._prepare(self._pool.kind(args[0]))
                if self._session is None:
                    raise SessionError("no episode is running: reset first")
                result: dict[str, Any] = await getattr(self._session, method)(*args, **options)
                return result
        except TaskError:
            raise
        except SessionError as error:
            if self._kind != "miniwob":
                self.discard(str(error))
            raise
        except TimeoutError:
            self.discard(f"no response within {self._pool.deadline_s:g} s")
        except BrowserError as error:
            self.discard(str(error))
        except asyncio.CancelledError:
            self.discard("a call was cancelled")
            raise
        finally:
            self._busy, self._used = False, time.monotonic()
        raise SessionError(f"the session is lost: {self._lost}")

    def discard(self, reason: str) -> None:
        """Give up the session and close it in the background."""
        self._lost = self._lost or reason
        self._slot.sessions.discard(self)
        session, self._session = self._session, None
        if session is not None:
            self._pool.run(self._close(session))

    def close(self) -> None:
        """Give up the session; may be called in any thread."""
        self._pool.loop.call_soon_threadsafe(self.discard, "it was closed")

    async def _prepare(self, kind: Kind) -> None:
        """Open a session of a kind, unless there is one already; a failure loses the session."""
        if kind == self._kind:
            return
        if self._session is not None:
            self._pool.run(self._close(self._session))
            self._session = None
        self._slot.sessions.discard(self)
        self._slot = self._pool.slot(kind, self._slot)
        self._slot.sessions.add(self)
        self._session, self._kind = await self._pool.session(kind, self._slot), kind
        if not isinstance(self._session, BrowserGymSession):
            await self._session.open()

    async def _close(self, session: Session | WebSession | BrowserGymSession) -> None:
        try:
            await asyncio.wait_for(session.close(), CLOSE_DEADLINE_S)
        except (BrowserError, SessionError, TaskError):
            pass  # the browser is gone, and the session's pages with it
        except TimeoutError:
            # A browser that cannot close a page hangs, and so do its other pages.
            if not isinstance(session, BrowserGymSession):  # whose browsers are its own
                await self._slot.stop()
