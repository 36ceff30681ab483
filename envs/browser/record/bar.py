"""The goal above the page: a small window of its own, so that the page stays as it is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.browser.record.events import Event
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.browser import PlaywrightChromium

WIDTH, HEIGHT = 860, 176
COMMAND = f"command_{secrets.token_hex(4)}"
HTML = Path(__file__).with_name("bar.html")


@dataclass
class State:
    """What the bar shows.

    Attributes:
        task: name and seed of the task.
        goal: the instruction.
        kept: demonstrations of this task that were kept.
        wanted: demonstrations of this task that are asked for.
        actions: what was done in this episode: each action and the elements that it names.
        note: the last message.
        tone: "good" or "bad" for one that matters.
        ready: True while what is done counts.
        answers: True if the task wants an answer, for which there is a field then.
    """

    task: str = ""
    goal: str = ""
    kept: int = 0
    wanted: int = 0
    actions: tuple[tuple[str, str], ...] = ()
    note: str = ""
    tone: str = ""
    ready: bool = False
    answers: bool = False


class Bar:
    """A window with the goal, the actions so far, and two buttons.

    A bar inside of the page would cover it or change its layout, be stopped by its policies, and be
    gone with every navigation.

    Args:
        browser: the Chromium of the page.
        put: called with events: "command", "answer", and "closed" when the person has closed it.
    """

    def __init__(self, browser: PlaywrightChromium, put: Callable[[Event], None]):
        self._browser = browser
        self._put = put
        self._page: Any = None

    async def open(self) -> None:
        """Open it in the upper left of the screen."""
        call = self._browser.call
        context = await call(self._browser.browser.new_context(no_viewport=True))
        await call(context.expose_binding(COMMAND, self._on_command))
        opener = await call(context.new_page())
        async with opener.expect_popup() as popup:  # a window without tabs
            size = f"popup,width={WIDTH},height={HEIGHT},left=0,top=0"
            await call(opener.evaluate(f"void open('about:blank', '_blank', {size!r})"))
        self._page = await call(popup.value)
        await call(self._page.set_content(HTML.read_text().replace("COMMAND", COMMAND)))
        await call(opener.close())
        self._page.on("close", lambda _: self._put(Event("closed")))

    async def show(self, state: State) -> None:
        """Show a state."""
        try:
            await self._browser.call(self._page.evaluate(f"show({json.dumps(asdict(state))})"))
        except BrowserError:
            return  # it was closed, which ends the recording

    async def place_above(self, page: Any) -> None:
        """Put it above the window of a page and make it as wide, where the two are on a screen."""
        bar, _ = await self._window(self._page)
        window, bounds = await self._window(page)
        await bar({"left": 0, "top": 0, "width": bounds["width"]})
        _, bounds = await self._window(self._page)
        await window({"left": 0, "top": bounds["top"] + bounds["height"]})

    def _on_command(self, source: Any, kind: str, value: str) -> None:
        self._put(Event(kind, value=value))

    async def _window(self, page: Any) -> tuple[Callable[[Any], Awaitable[None]], dict[str, int]]:
        """Return what moves the window of a page, and where it is."""
        call = self._browser.call
        session = await call(page.context.new_cdp_session(page))
        found = await call(session.send("Browser.getWindowForTarget"))

        async def move(bounds: dict[str, int]) -> None:
            window = {"windowId": found["windowId"], "bounds": bounds}
            await call(session.send("Browser.setWindowBounds", window))

        return move, found["bounds"]
