"""Execution of the actions with Playwright's own, and the reasons it gives as one line."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from envs.browser.actions import Action
from envs.browser.server.errors import ActionRefused, BrowserError
from envs.browser.server.playwright.browser import PlaywrightChromium

TIMEOUT_MS = 2000
"""How long an action waits for its element to be visible, still, enabled and uncovered."""
SLOW_MS = 20_000
"""How long it waits if the page does not respond."""
DRAG_STEPS = 10
"""Moves of a drag between two points: a page that draws or sorts needs more than one."""

# Lines of Playwright's log (1.44 to 1.55) when the page, not a slow machine, stopped an action. The
# last of them is the reason.
_REASONS = {
    "element is not visible": "the element is not visible",
    "element is not enabled": "the element is not enabled",
    "element is not editable": "the element is not editable",
    "element is not stable": "the element keeps moving",
    "element is outside of the viewport": "the element is outside the window",
    "did not find some options": "there is no such option",
    "option being selected is not enabled": "the option is not enabled",
}
_LOG_LINE = re.compile(r"^[\s-]*(?:\d+ \u00d7 )?(.*?)\s*$", re.MULTILINE)
# Beginnings of the errors that Playwright raises at once.
_REFUSALS = {
    "Clicking the checkbox did not change its state": "clicking it did not change its state",
    "Not a checkbox or radio button": "the element is neither a checkbox nor a radio button",
    "Element is not a <select>": "the element is not a list of options",
    "Element is not an <input>": "the element is not a text field",
    "Cannot type text into input[type=number]": "the field takes numbers only",
    "Element is not attached to the DOM": "the element is gone",
}
_MALFORMED = "Malformed value"
IS_FILE_INPUT = "an input of type file cannot be filled"

_CANNOT_FILL = re.compile(r'Input of type "(\w+)" cannot be filled')
_UNKNOWN_KEY = re.compile(r'Unknown key: "(.*?)"(?:\nCall log:|\s*$)', re.DOTALL)


class Host(Protocol):
    """What an action needs of a page."""

    browser: PlaywrightChromium
    page: Any
    """Playwright's page."""
    frames: dict[str, Any]
    """Playwright's frames by the letters in front of their elements' ids."""
    attribute: str
    """The attribute that holds an element's id."""
    known: Collection[str]
    """Ids of the elements as the page was read last."""

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the main frame and return its value."""
        ...


async def perform(tab: Host, action: Action, *, scroll_scale: float = 1.0) -> None:
    """Execute an action.

    Args:
        tab: a page whose elements are marked.
        action: an action with ids of this page.
        scroll_scale: pixels of `scroll` per pixel of the page.

    Raises:
        ActionRefused: the page does not allow it.
        BrowserError: the infrastructure failed.
    """
    if action.points:
        width, height = await tab.run("[innerWidth, innerHeight]")
        if any(x >= width or y >= height for x, y in action.points):
            raise ActionRefused(f"the window has {width} x {height} pixels")
    located = {bid: _locate(tab, bid) for bid in action.ids}
    impatient = action.name not in ("focus", "press")
    for bid, locator in located.items():
        # Playwright would wait for an element that was never there.
        if not (impatient and bid in tab.known) and not await tab.browser.call(locator.count()):
            raise _no_element(bid)
    limits = (TIMEOUT_MS, SLOW_MS) if impatient else (SLOW_MS,)
    elements = [located[bid] for bid in action.ids]  # two of a drag, even onto itself
    for limit in limits:
        if await _attempt(tab, action, elements, {"timeout": limit}, scroll_scale):
            return
        for bid, locator in located.items():
            if not await tab.browser.call(locator.count()):
                raise _no_element(bid)
    raise BrowserError(f"the page did not respond to {action.name} within {limits[-1]} ms")


async def _attempt(
    tab: Host, action: Action, located: list[Any], limit: dict[str, int], scroll_scale: float
) -> bool:
    """Execute an action; return False if a slow page has not let it begin in time."""
    from playwright.async_api import Error, TimeoutError

    call = tab.browser.call
    try:
        await call(_start(tab.page, action, located, limit, scroll_scale))
    except TimeoutError as error:
        reason, begun = _read_log(str(error), action.ids)
        if begun and action.name == "drag_and_drop":
            await call(tab.page.mouse.up())
        if reason:
            raise ActionRefused(reason) from None
        # Once begun it is done: the page, or a dialog, keeps Playwright from seeing so.
        return begun and action.name != "drag_and_drop"
    except BrowserError as error:
        cause = error.__cause__
        text = str(cause) if isinstance(cause, Error) else ""
        reason = _refusal(text)
        if _MALFORMED in text:
            kind = "e => (e.closest('label')?.control ?? e).type"
            reason = f"not a value of a {await call(located[0].evaluate(kind))} field"
        if not reason:
            raise
        raise ActionRefused(reason) from None
    return True


async def choose_file(tab: Host, action: Action, files: Mapping[str, Path]) -> None:
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
    await tab.browser.call(
        _locate(tab, action.ids[0]).set_input_files(files[name], timeout=TIMEOUT_MS)
    )


async def _start(
    page: Any, action: Action, located: list[Any], limit: dict[str, int], scroll_scale: float
) -> None:
    name, args = action.name, action.args
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
    elif name in ("click_at", "drag"):
        await _at_points(page, action)
    elif name != "noop":
        raise AssertionError(f"no such action: {name}")


async def _at_points(page: Any, action: Action) -> None:
    if action.name == "click_at":
        # All its events at once: what is drawn there may move before another round trip is over.
        await page.mouse.click(*action.points[0])
        return
    start, end = action.points
    await page.mouse.move(*start)
    await page.mouse.down()
    try:
        await page.mouse.move(*end, steps=DRAG_STEPS)
    finally:
        await page.mouse.up()


def _locate(tab: Host, bid: str) -> Any:
    frame = tab.frames.get(bid.rstrip("0123456789"))
    if frame is None:
        raise _no_element(bid)
    return frame.locator(f'[{tab.attribute}="{bid}"]').first


def _no_element(bid: str) -> ActionRefused:
    return ActionRefused(f"there is no element {bid}")


def _read_log(error: str, bids: Sequence[str]) -> tuple[str, bool]:
    """Return why the last attempt in Playwright's log failed, and True if an input event was sent.

    Args:
        error: Playwright's error, with its log.
        bids: ids of the action's elements.
    """
    reason, begun, sought = "", False, ""
    for line in _LOG_LINE.findall(error):
        if line.startswith("waiting for locator("):
            sought = next((bid for bid in bids if f'"{bid}\\"' in line), bids[0])
        elif line == "element was detached from the DOM, retrying":
            reason = f"there is no element {sought}"
        elif line.endswith(" intercepts pointer events"):
            reason = "another element covers it"
        elif line.startswith(("locator resolved to ", "performing ")):
            reason, begun = "", begun or line.startswith("performing ")
        else:
            reason = _REASONS.get(line, reason)
    return reason, begun


def _refusal(error: str) -> str:
    if match := _CANNOT_FILL.search(error):
        return f"an input of type {match[1]} cannot be filled"
    if match := _UNKNOWN_KEY.search(error):
        return f"unknown key {match[1][:40]!r}"
    return next((reason for part, reason in _REFUSALS.items() if part in error), "")
