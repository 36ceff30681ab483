"""A Chromium controlled by Playwright, with a node process of its own."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import uuid
from collections.abc import Awaitable, Coroutine, Sequence
from functools import cache
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from envs.browser.foreign_text import one_line
from envs.browser.server.chromium import (
    PAGE_ARGS,
    chromium_args,
    find_chromium,
    find_visible_chromium,
)
from envs.browser.server.errors import BrowserError, BrowserGone, NavigatedAway
from envs.browser.server.processes import kill_marked, last_lines, marked

MARK = "GRPO_BROWSER"
CLOSE_S = 5.0
Result = TypeVar("Result")

# Parts of Playwright's errors.
_CLOSED = ("browser has been closed", "has been closed", "Target closed", "Session closed")
_GONE = ("Browser closed", "Connection closed", "reading from the driver")
_NAVIGATED = (
    "context was destroyed",
    "Frame was detached",
    "Frame has been detached",
    "Cannot find context",
    "navigating and changing",
    "navigated or closed",
    "Cannot find default execution context",
)
_LOGGED = re.compile(r"^\[pid=\d+\]\[err\] (.*)", re.MULTILINE)

_starting = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()
"""Of each event loop: held while the mark is in this process's environment, which the node process
inherits."""


class PlaywrightChromium:
    """One Chromium and the node process that controls it.

    Args:
        visible: True for a window on the screen.
        args: more arguments of Chromium.

    Attributes:
        alive: True from `start` until one of the two ends or is found to hang.
        browser: Playwright's browser, once it is started.
        is_shared: True if it runs for its user, who has other tabs in it.
    """

    is_shared = False

    def __init__(self, *, visible: bool = False, args: Sequence[str] = ()) -> None:
        self.alive = False
        self.browser: Any = None
        self._visible = visible
        self._args = args
        self._playwright: Any = None
        self._session: Any = None
        self._mark = uuid.uuid4().hex
        self._node = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start both processes and wait until the browser responds.

        Raises:
            BrowserGone: it cannot be started; the message contains the reason.
            FileNotFoundError: there is no Chromium, or no display for a visible one.
        """
        path = self._find()
        try:
            await self._start_node()
            self.browser = await self._launch(self._playwright.chromium, path)
            self._session = await self.browser.new_browser_cdp_session()
        except asyncio.CancelledError:  # a deadline, say
            await self.stop()
            raise
        except Exception as error:
            await self.close()
            raise BrowserGone(self._why_not_started(path, str(error))) from error
        self.alive = True
        self.browser.on("disconnected", lambda _: self._died())

    async def _start_node(self) -> None:
        from playwright.async_api import async_playwright

        async with _starting.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            os.environ[MARK] = self._mark
            try:
                self._playwright = await async_playwright().start()
            finally:
                del os.environ[MARK]
        self._node = min(marked(f"{MARK}={self._mark}"), default=0)

    def _find(self) -> str:
        return find_visible_chromium() if self._visible else find_chromium()

    async def _launch(self, chromium: Any, path: str) -> Any:
        return await chromium.launch(
            executable_path=path,
            headless=not self._visible,
            args=[*chromium_args(visible=self._visible), *PAGE_ARGS, *self._args],
            ignore_default_args=["--hide-scrollbars"],  # pages look as on a desktop
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
            env=os.environ | {MARK: self._mark},
        )

    def _why_not_started(self, path: str, error: str) -> str:
        if "<process did exit" not in error:
            reason = error.removeprefix("BrowserType.launch: ").partition("\n")[0]
            return f"cannot start {path}: {one_line(reason)}"
        output = last_lines("\n".join(_LOGGED.findall(error)), 3)
        return f"{path} exited at its start; its last output:\n{output}"

    async def ping(self) -> None:
        """Wait until the browser responds.

        Raises:
            BrowserError: it is gone.
        """
        if not self.alive:
            raise BrowserGone("the browser is gone")
        await self.call(self._session.send("Browser.getVersion"))

    async def call(self, awaitable: Awaitable[Result]) -> Result:
        """Await one of Playwright's calls, with its errors as ours.

        Raises:
            NavigatedAway: the page navigated in the meantime.
            BrowserGone: browser or node ended.
            BrowserError: anything else; Playwright's own `TimeoutError` is passed on.
        """
        from playwright.async_api import TimeoutError as PlaywrightTimeout

        if self._node and not _runs(self._node):
            self._died()
        if not self.alive:
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise BrowserGone("the browser is gone")
        _spare_stack()
        try:
            return await awaitable
        except PlaywrightTimeout:
            raise
        except Exception as error:
            raise self.translated(error) from error

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a background coroutine."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def translated(self, error: Exception) -> Exception:
        """Return one of Playwright's errors as one of ours; other exceptions unchanged."""
        from playwright.async_api import Error

        text = str(error).removeprefix(": ")  # the name of the call, which `_spare_stack` hides
        if not isinstance(error, Error) and "reading from the driver" not in text:
            return error
        if any(words in text for words in _NAVIGATED):
            return NavigatedAway(one_line(text))
        if "crashed" in text:
            return BrowserError("the page crashed")
        if any(words in text for words in _GONE):
            self._died()
        if any(words in text for words in (*_CLOSED, *_GONE)):
            if self.alive and self.browser.is_connected():
                return NavigatedAway("the page was closed")
            return BrowserGone("the browser is gone")
        return BrowserError(one_line(text))

    async def close(self) -> None:
        """End both processes; unlike `stop`, let them remove their temporary files."""
        try:
            async with asyncio.timeout(CLOSE_S):
                if self.browser is not None:  # None: it did not start
                    await self.call(self.browser.close())
                playwright, self._playwright = self._playwright, None
                if playwright is not None:
                    await playwright.stop()
        except (BrowserError, TimeoutError):
            pass  # gone already, or it hangs
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Kill both processes and everything that they started."""
        self.alive = False
        await asyncio.to_thread(kill_marked, f"{MARK}={self._mark}")
        playwright, self._playwright = self._playwright, None
        if playwright is not None:
            try:
                await asyncio.wait_for(playwright.stop(), 1.0)
            except Exception:  # its node process is gone: of any type, or none in time
                return

    def _died(self) -> None:
        self.alive = False


def _spare_stack() -> None:
    """Spare Playwright's calls in this task the search for their caller's line, 2 ms each.

    Playwright looks for its synchronous API's note of the caller first; without it, it reads the
    source of every frame on the stack. Where a version ignores the note, it is slower.
    """
    task = asyncio.current_task()
    if task is not None:
        task.__pw_stack__ = _stack()  # type: ignore[attr-defined]


@cache
def _stack() -> list[inspect.FrameInfo]:
    return inspect.stack(0)[:1]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
