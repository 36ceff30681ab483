"""The person's side: reports of what is done in a window, while it is recorded."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from envs.browser.record.events import Event, read_report
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.window import Window

REPORT = f"report_{secrets.token_hex(4)}"  # that no page has

TYPED = {"typed", "address_bar", "generated", "keyword", "keyword_generated", "auto_bookmark"}
"""How Chromium names arrivals by the address bar."""

HISTORY_S = 2.0
"""How long the history may take to have a page that has arrived."""

PAUSE_S = 0.02
"""Between two looks at it."""


@cache
def capture_script() -> str:
    """Return the script that reports what is done in a frame."""
    script = Path(__file__).with_name("capture.js").read_text()
    return f"(() => {{ const REPORT = {json.dumps(REPORT)};\n{script}}})()"


class Capture:
    """Listens to the windows of a session.

    Args:
        put: called with each event; one of kind "closed" when the person has closed the window.

    Attributes:
        on: False to drop what happens, which is what the task's `setup` does, or an undo.
    """

    def __init__(self, put: Callable[[Event], None]):
        self.on = False
        self._put = put
        self._arrived: set[int] = set()  # ids of entries of the history
        self._context: Any = None
        self._call: Any = None

    async def follow(self, window: Window) -> None:
        """Listen to a new window; see `WebSession.on_window`."""
        tab = await window.tabs.front()
        context = self._context = tab.page.context
        call = self._call = window.browser.call
        await call(context.expose_binding(REPORT, self._on_report))
        await call(context.add_init_script(capture_script()))
        context.on("page", lambda page: self._on_page(window, page))
        self._watch(tab.page)
        await self._follow_session(window, tab.page)

    async def begin(self) -> Any:
        """Report from now on what is done; return the page in front."""
        page = self._context.pages[-1]
        for frame in page.frames:
            with suppress(BrowserError):  # it has no page
                await self._call(frame.evaluate(f"window.{REPORT}_start?.()"))
        self.on = True
        return page

    def _on_page(self, window: Window, page: Any) -> None:
        self._watch(page)
        window.browser.run(self._follow_session(window, page))

    def _watch(self, page: Any) -> None:
        page.on("close", lambda _: self._on_close(page.context))

    def _on_close(self, context: Any) -> None:
        if self.on and context is self._context and not context.pages:
            self._put(Event("closed"))

    def _on_report(self, source: Any, report: str) -> None:
        frame, page = source["frame"], source["page"]
        if not self.on or page.context is not self._context:
            return
        if page != page.context.pages[-1]:
            event = Event("ignored", value="the model acts in the newest tab only")
        else:
            try:
                event = read_report(report, _place(frame))
            except ValueError:
                return  # the page's own doing
        self._put(event)

    async def _follow_session(self, window: Window, page: Any) -> None:
        """Report how a person answers dialogs, and which addresses they type."""
        session = await window.browser.call(page.context.new_cdp_session(page))
        await window.browser.call(session.send("Page.enable"))
        session.on("Page.javascriptDialogClosed", lambda answer: self._on_answer(window, answer))
        run = window.browser.run
        session.on(
            "Page.frameNavigated",
            lambda event: run(self._on_arrival(session, event["frame"], self.on)),
        )

    async def _on_arrival(self, session: Any, frame: dict[str, Any], counts: bool) -> None:
        """Report an address that was typed.

        The renderer sends the event; the browser process, which keeps the history, may learn of
        the new page a little later.
        """
        if "parentId" in frame:
            return  # addresses are typed for the whole page
        url = _without_fragment(frame.get("unreachableUrl") or frame["url"])
        for _ in range(round(HISTORY_S / PAUSE_S)):
            with suppress(BrowserError):  # it has no history while one page follows another
                history = await self._call(session.send("Page.getNavigationHistory"))
                index, entries = history["currentIndex"], history["entries"]
                entry, before = entries[index], entries[max(index - 1, 0)]
                if _without_fragment(entry["url"]) == url:
                    break
            await asyncio.sleep(PAUSE_S)
        else:
            return  # the page is gone again
        if counts and entry["transitionType"] in TYPED and entry["id"] not in self._arrived:
            self._put(Event("goto", value=_relative(entry["url"], before["url"])))
        self._arrived.add(entry["id"])

    def _on_answer(self, window: Window, answer: dict[str, Any]) -> None:
        if self.on and window.dialogs.forget():
            text = answer.get("userInput", "")
            self._put(Event("dialog", value=text, accepted=answer["result"]))


def _without_fragment(url: str) -> str:
    return url.partition("#")[0]


def _relative(url: str, before: str) -> str:
    """Return an address without its origin where it is that of the page before: ports change."""
    origin = urlsplit(before)._replace(path="", query="", fragment="").geturl()
    path = url.removeprefix(origin)
    return path if path.startswith("/") else url


def _place(frame: Any) -> tuple[int, ...]:
    """Return a frame's place among its parent's frames, from the top down."""
    parent = frame.parent_frame
    return (*_place(parent), parent.child_frames.index(frame)) if parent else ()
