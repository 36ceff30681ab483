"""Which actions may make a page send something, as far as can be known before they are done."""

from __future__ import annotations

from envs.browser.actions import Action
from envs.browser.page_text import TEXT_ROLES

QUIET = {"answer", "clear", "fill", "focus", "hover", "noop", "scroll"}
"""Actions that only type, point or look. (A page that saves each letter sends it all the same.)"""

MOVING = {"End", "Escape", "Home", "PageDown", "PageUp", "Shift+Tab", "Tab"}
"""Keys that only move the cursor or the page."""


def may_send(action: Action, role: str) -> bool:
    """Return True unless an action only types, points or looks.

    Nobody can tell what a page does at a point, so a click or a drag there may send.

    Args:
        action: the action.
        role: role of its element; empty if it has none.
    """
    if action.name in QUIET:
        return False
    in_text = role in TEXT_ROLES
    if action.name == "press":
        key = str(action.args[1])
        typed = in_text and key not in ("Enter", "NumpadEnter") and "+" not in key.removesuffix("+")
        return not (typed or key in MOVING)
    return not (in_text and action.name in ("click", "dblclick"))
