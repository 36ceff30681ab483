"""A fixed number of Chromiums, the sites, and the sessions in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Literal

from envs.base import TaskError
from envs.browser.browsergym_task import BrowserGymTask, is_browsergym_task
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.tasks import find_task
from envs.browser.server.browsergym_session import BrowserGymSession
from envs.browser.server.playwright.page import Page
from envs.browser.server.pooled_session import CLOSE_DEADLINE_S, PooledSession
from envs.browser.server.session import Session
from envs.browser.server.sites import Sites
from envs.browser.server.slot import Slot
from envs.browser.server.web_session import WebSession
from envs.browser.task_file import TaskFile

Kind = Literal["miniwob", "site", "browsergym"]

WATCH_INTERVAL_S = 5.0

AnySession = Session | WebSession | BrowserGymSession


class ChromiumPool:
    """A fixed number of Chromiums; a session stays in one of them. Created in an event loop.

    Args:
        browsers: number of Chromiums.
        deadline_s: seconds that a reset or a step may take.
        idle_s: seconds after which an unused session is closed.
        task_file: the user's own tasks; None for none.

    Attributes:
        slots: one per Chromium.
    """

    def __init__(
        self,
        browsers: int,
        *,
        deadline_s: float,
        idle_s: float,
        task_file: TaskFile | None = None,
    ):
        self.deadline_s = deadline_s
        self.idle_s = idle_s
        self.task_file = task_file
        self.sites = None if task_file is None else Sites(task_file)
        self.slots = [Slot() for _ in range(browsers)]
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
        return PooledSession(self, min(self.slots, key=lambda slot: len(slot.sessions)))

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

    async def session(self, kind: Kind, slot: Slot) -> AnySession:
        """Return a session that is not open yet."""
        if kind == "browsergym":
            path = self.task_file.path if self.task_file else None
            return BrowserGymSession(path, deadline_s=self.deadline_s)
        if kind == "site":
            assert self.task_file is not None
            assert self.sites is not None
            return WebSession(await slot.browser(), self.task_file, self.sites)
        return Session(Page(await slot.browser(), miniwob_url()))

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
        for session in [session for slot in self.slots for session in slot.sessions]:
            session.discard("the server stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(slot.stop() for slot in self.slots))
        if self.sites is not None:
            await asyncio.to_thread(self.sites.stop)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(self.idle_s / 4, WATCH_INTERVAL_S))
            for slot in self.slots:
                for session in list(slot.sessions):
                    if session.idle_for() > self.idle_s:
                        session.discard(f"unused for {self.idle_s:g} s")
            await asyncio.gather(*(slot.check() for slot in self.slots))
