"""The person's side: reports of what is done in a window, while it is recorded."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from envs.browser.record.events import Event, read_report
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.window import Window

REPORT = f"report_{secrets.token_hex(4)}"  # that no page has


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
        self._context: Any = None
        self._call: Any = None

    async def follow(self, window: Window) -> None:
        """Listen to a new window; see `WebSession.on_window`."""
        tab = await window.tabs.front()
        context = self._context = tab.page.context
        call = self._call = window.browser.call
        await call(context.expose_binding(REPORT, self._on_report))
        await call(context.add_init_script(capture_script()))
        context.on("page", lambda page: self._watch(window, page))
        self._watch(window, tab.page)

    async def begin(self) -> None:
        """Report from now on what is done."""
        for frame in self._context.pages[-1].frames:
            with suppress(BrowserError):  # it has no page
                await self._call(frame.evaluate(f"window.{REPORT}_start?.()"))
        self.on = True

    def _watch(self, window: Window, page: Any) -> None:
        page.on("close", lambda _: self._on_close(page.context))
        window.browser.run(self._follow_dialogs(window, page))

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

    async def _follow_dialogs(self, window: Window, page: Any) -> None:
        """Report how a person answers dialogs."""
        session = await window.browser.call(page.context.new_cdp_session(page))
        await window.browser.call(session.send("Page.enable"))
        session.on("Page.javascriptDialogClosed", lambda answer: self._on_answer(window, answer))

    def _on_answer(self, window: Window, answer: dict[str, Any]) -> None:
        if self.on and window.dialogs.forget():
            text = answer.get("userInput", "")
            self._put(Event("dialog", value=text, accepted=answer["result"]))


def _place(frame: Any) -> tuple[int, ...]:
    """Return a frame's place among its parent's frames, from the top down."""
    parent = frame.parent_frame
    return (*_place(parent), parent.child_frames.index(frame)) if parent else ()
