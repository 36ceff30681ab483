"""What BrowserGym observes, as our sessions return it."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

from envs.browser.protocol import action_failure
from envs.browser.server.tree import in_window, merged_tree_text

Observed = dict[str, Any]
"""An observation of BrowserGym's."""

_EXCEPTION = re.compile(r"(?:[A-Za-z.]*(?:Error|Exception): |[A-Z]\w*\.\w+: )+")


def goal_text(observed: Observed) -> str:
    """Return the goal as text.

    Raises:
        ValueError: there is none, or it is not text alone.
    """
    parts = observed["goal_object"]
    if any(part["type"] != "text" for part in parts):
        raise ValueError("its goal has an image, not text alone")
    goal = "\n".join(part["text"] for part in parts)
    if not goal:
        raise ValueError("it has no goal")
    return goal


def error_text(action: str, reason: str) -> str:
    """Return why an action failed in one line, empty if it did not.

    Args:
        action: name of the action.
        reason: BrowserGym's `last_action_error`.

    Raises:
        ValueError: it only took too long: the machine is slow.
    """
    text = action_failure(reason) if reason else ""
    if not text or text.startswith(f"{action} failed"):
        return text
    line = text.strip().partition("\n")[0]
    return f"{action} failed: {_EXCEPTION.sub('', line, count=1)}"


def page_text(observed: Observed, *, whole: bool) -> tuple[str, dict[str, int]]:
    """Return the page's tree, and the number of lines that it leaves out by where they are.

    Args:
        observed: what BrowserGym observed.
        whole: False for only what is in the window.
    """
    text = merged_tree_text(observed["axtree_object"])
    if whole:
        return text, {}
    visible, outside = set(), {}
    height = observed["screenshot"].shape[0]
    for bid, element in observed["extra_element_properties"].items():
        if element["visibility"]:
            visible.add(bid)
        elif element["bbox"]:
            _, y, _, h = element["bbox"]
            outside[bid] = "above" if y + h <= 0 else "below" if y >= height else "clipped"
    return in_window(text, visible, outside)


def screenshot(observed: Observed) -> str:
    """Return the screenshot as base64 of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(observed["screenshot"]).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def boxes(observed: Observed) -> dict[str, list[float]]:
    """Return the rectangles of the visible elements, cut at the edges of the screenshot."""
    height, width = observed["screenshot"].shape[:2]
    found = {}
    for bid, element in observed["extra_element_properties"].items():
        if element["bbox"] and element["visibility"]:
            x, y, w, h = element["bbox"]
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + w, width), min(y + h, height)
            if right > left and bottom > top:
                found[bid] = [left, top, right - left, bottom - top]
    return found
