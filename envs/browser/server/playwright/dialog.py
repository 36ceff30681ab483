"""A page's dialogs: a confirm or prompt is a page that the agent reads and acts on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from envs.browser.actions import Action
from envs.browser.foreign_text import one_line
from envs.browser.server.errors import ActionRefused, BrowserError, NavigatedAway
from envs.browser.server.playwright.browser import PlaywrightChromium

Result = TypeVar("Result")

_TEXTBOX, _OK, _CANCEL = "1", "2", "3"


class Dialog:
    """A dialog that waits for an answer.

    Args:
        dialog: Playwright's dialog.

    Attributes:
        answered: True once the agent has clicked one of its buttons.
    """

    def __init__(self, dialog: Any):
        self.answered = False
        self._dialog = dialog
        self._is_prompt = dialog.type == "prompt"
        self._typed: str = dialog.default_value
        self._accept = False

    def text(self) -> str:
        """Return the dialog as an accessibility tree."""
        lines = ["RootWebArea ''", f"\t[0] dialog {one_line(self._dialog.message)!r}"]
        if self._is_prompt:
            value = f" value={one_line(self._typed)!r}" if self._typed else ""
            lines.append(f"\t\t[{_TEXTBOX}] textbox ''{value}")
        return "\n".join([*lines, f"\t\t[{_OK}] button 'OK'", f"\t\t[{_CANCEL}] button 'Cancel'"])

    def act(self, action: Action) -> None:
        """Take an action; one on a button answers the dialog.

        Raises:
            ActionRefused: the action is not one on this dialog.
        """
        button = action.args[0] if action.name in ("click", "press") and action.args else ""
        if button in (_OK, _CANCEL):
            self.answered, self._accept = True, button == _OK
        elif self._is_prompt and action.name in ("fill", "clear") and action.args[0] == _TEXTBOX:
            self._typed = str(action.args[1]) if action.name == "fill" else ""
        elif action.name not in ("noop", "focus", "hover"):
            raise ActionRefused("a dialog is open: click one of its buttons")

    async def answer(self) -> None:
        """Give the page the answer."""
        if not self._accept:
            await self._dialog.dismiss()
        elif self._is_prompt:
            await self._dialog.accept(self._typed)
        else:
            await self._dialog.accept()


class DialogOpened(Exception):
    """A dialog came up, and the page does nothing until it is answered."""


class Dialogs:
    """The dialogs of a window.

    Args:
        browser: the window's Chromium.

    Attributes:
        interactive: True if confirm and prompt wait for an action; otherwise they are accepted.
        waiting: the dialog that waits, if there is one.
    """

    def __init__(self, browser: PlaywrightChromium):
        self.interactive = False
        self.waiting: Dialog | None = None
        self._browser = browser
        self._alerts: list[str] = []
        self._opened = asyncio.Event()
        self._pending: asyncio.Future[Any] | None = None

    def on_dialog(self, dialog: Any) -> None:
        """Take a dialog that a page has opened."""
        if self.interactive and dialog.type in ("confirm", "prompt"):
            self.waiting = Dialog(dialog)
            self._opened.set()
            return
        if dialog.type == "alert":
            self._alerts.append(dialog.message)
        self._browser.run(self._accept(dialog))

    def alerts(self) -> list[str]:
        """Return the texts of the alerts since the last call."""
        alerts, self._alerts = self._alerts, []
        return alerts

    async def act(self, action: Action) -> None:
        """Take an action on the dialog that waits; its answer lets the page go on.

        Raises:
            ActionRefused: the action is not one on this dialog.
            DialogOpened: the dialog still waits, or another one came up.
            BrowserError: the infrastructure failed.
        """
        assert self.waiting is not None
        self.waiting.act(action)
        if not self.waiting.answered:
            raise DialogOpened
        answer, self.waiting = self.waiting.answer(), None
        self._opened.clear()
        pending, self._pending = self._pending, None
        await self.race(self._both(answer, pending))

    async def race(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await some work; a dialog that comes up interrupts it, and it goes on when answered.

        Raises:
            DialogOpened: a dialog came up; look at it.
        """
        task = asyncio.ensure_future(work)
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            opened.cancel()
        if task.done():
            return task.result()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending = task
        raise DialogOpened

    def forget(self) -> bool:
        """Forget the dialog that waits, which a person has answered; True if there was one."""
        waiting, self.waiting = self.waiting, None
        self._opened.clear()
        return waiting is not None

    def cancel(self) -> None:
        """Give up the work that a dialog has interrupted."""
        if self._pending is not None:
            self._pending.cancel()

    async def _both(self, answer: Coroutine[Any, Any, None], pending: Any) -> None:
        """Answer a dialog, and finish what waited for it."""
        await self._browser.call(answer)
        if pending is not None:
            try:
                await pending
            except NavigatedAway:
                return

    async def _accept(self, dialog: Any) -> None:
        try:
            await self._browser.call(dialog.accept())
        except BrowserError:
            return  # the task's own handler answered it, or its page is gone
