"""A page's confirm or prompt, as a page that the agent reads and acts on."""

from __future__ import annotations

from typing import Any

from envs.browser.actions import Action
from envs.browser.foreign_text import one_line
from envs.browser.server.errors import ActionRefused

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
