"""Execution of the actions with Playwright's own, and the reasons it gives as one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envs.browser.actions import Action
from envs.browser.foreign_text import one_line
from envs.browser.server.errors import ActionRefused, BrowserError
from envs.browser.server.playwright.tab import Tab

TIMEOUT_MS = 3000
"""How long an action waits for its element to be visible, still, enabled and uncovered."""

# Parts of Playwright's log when the page, not a slow machine, stopped an action; the last one that
# the log names is the reason.
_REASONS = {
    "element is not attached": "the element is gone",
    "element was detached": "the element is gone",
    "element is not visible": "the element is not visible",
    "element is not enabled": "the element is not enabled",
    "element is not editable": "the element is not editable",
    "element is not stable": "the element keeps moving",
    "intercepts pointer events": "another element covers it",
    "outside of the viewport": "the element is outside the window",
    "did not find some options": "there is no such option",
    "option being selected is not enabled": "the option is not enabled",
}
# Parts of the errors that Playwright raises at once.
_REFUSALS = {
    "Clicking the checkbox did not change": "clicking it did not change its state",
    "Not a checkbox or radio button": "the element is neither a checkbox nor a radio button",
    "Element is not a <select>": "the element is not a list of options",
    "Element is not an <input>": "the element is not a text field",
    "Cannot type text into input[type=number]": "the field takes numbers only",
    "Malformed value": "not a value of this field",
    "Element is not attached": "the element is gone",
    "Element is not visible": "the element is not visible",
    "Element is outside of the viewport": "the element is outside the window",
}
IS_FILE_INPUT = "an input of type file cannot be filled"

_CANNOT_FILL = re.compile(r'Input of type "(\w+)" cannot be filled')
_UNKNOWN_KEY = re.compile(r'Unknown key: "(.*?)"')


async def perform(tab: Tab, action: Action, *, scroll_scale: float = 1.0) -> None:
    """Execute an action.

    Args:
        tab: a page whose elements are marked.
        action: an action with ids of this page.
        scroll_scale: pixels of `scroll` per pixel of the page.

    Raises:
        ActionRefused: the page does not allow it.
        BrowserError: the infrastructure failed.
    """
    from playwright.async_api import Error, TimeoutError

    located = [_locate(tab, str(bid)) for bid in action.ids]
    try:
        await tab.browser.call(_start(tab, action, located, scroll_scale))
    except TimeoutError as error:
        reason = _last_reason(str(error))
        if located and "locator resolved" not in str(error):
            reason = f"there is no element {action.ids[0]}"
        if not reason:
            raise BrowserError(f"the browser was too slow: {one_line(str(error))}") from None
        raise ActionRefused(reason) from None
    except BrowserError as error:
        cause = error.__cause__
        reason = _refusal(str(cause)) if isinstance(cause, Error) else ""
        if not reason:
            raise
        raise ActionRefused(reason) from None


async def choose_file(tab: Tab, action: Action, files: Mapping[str, Path]) -> None:
    """Choose a file in a file input.

    Args:
        tab: the page.
        action: `fill('id', 'name')`.
        files: the files by name.

    Raises:
        ActionRefused: there is no such file.
    """
    name = str(action.args[1])
    if name not in files:
        raise ActionRefused(f"the files to choose from are {', '.join(files) or 'none'}")
    await tab.browser.call(_locate(tab, action.ids[0]).set_input_files(files[name]))


async def _start(tab: Tab, action: Action, located: list[Any], scroll_scale: float) -> None:
    name, args = action.name, action.args
    page, limit = tab.page, {"timeout": TIMEOUT_MS}
    if name in ("click", "dblclick", "hover", "check", "uncheck", "clear"):
        await getattr(located[0], name)(**limit)
    elif name == "focus":
        await located[0].focus(**limit)
    elif name in ("fill", "press", "select_option"):
        await getattr(located[0], name)(args[1], **limit)
    elif name == "drag_and_drop":
        await located[0].drag_to(located[1], **limit)
    elif name == "scroll":
        x, y = (float(pixels) / scroll_scale for pixels in args)
        await page.mouse.wheel(x, y)
    elif name != "noop":
        raise AssertionError(f"no such action: {name}")


def _locate(tab: Tab, bid: str) -> Any:
    frame = tab.frames.get(bid.rstrip("0123456789"))
    if frame is None:
        raise ActionRefused(f"there is no element {bid}")
    return frame.locator(f'[{tab.attribute}="{bid}"]').first


def _last_reason(log: str) -> str:
    place, reason = max((log.rfind(part), reason) for part, reason in _REASONS.items())
    return reason if place >= 0 else ""


def _refusal(error: str) -> str:
    if match := _CANNOT_FILL.search(error):
        return f"an input of type {match[1]} cannot be filled"
    if match := _UNKNOWN_KEY.search(error):
        return f"unknown key {match[1][:40]!r}"
    return next((reason for part, reason in _REFUSALS.items() if part in error), "")
