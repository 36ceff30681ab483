"""Execution of the actions on a page, with the same input events and checks as Playwright."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envs.browser.actions import Action
from envs.browser.server.cdp import keyboard
from envs.browser.server.dragging import between
from envs.browser.server.errors import ActionRefused
from envs.browser.server.page_script import SCREENSHOT_SCALE

if TYPE_CHECKING:
    from envs.browser.server.cdp.page import Page

POINTING_ATTEMPTS = 4

_PRESS = {"type": "mousePressed", "button": "left", "clickCount": 1}
_RELEASE = {"type": "mouseReleased", "button": "left", "clickCount": 1}


async def perform(page: Page, action: Action) -> None:
    """Execute an action.

    Args:
        page: a page whose elements have their ids in the attribute `bid`.
        action: an action with ids of this page.

    Raises:
        ActionRefused: the page does not allow it.
        BrowserError: the infrastructure failed.
    """
    name, args = action.name, action.args
    if name in ("click", "dblclick"):
        await _move_to(page, args[0])
        await _click(page, times=2 if name == "dblclick" else 1)
    elif name == "hover":
        await _move_to(page, args[0], enabled=False)
    elif name in ("check", "uncheck"):
        await _set_checked(page, args[0], name == "check")
    elif name in ("fill", "clear"):
        await _fill(page, str(args[0]), str(args[1]) if name == "fill" else "")
    elif name == "select_option":
        await page.call("choose", *args)
    elif name == "focus":
        await page.call("focus", *args)
    elif name == "press":
        await page.call("focus", args[0])
        try:
            events = keyboard.events(str(args[1]))
        except ValueError as unknown:
            raise ActionRefused(str(unknown)) from None
        await page.key_events(events)
    elif name == "drag_and_drop":
        await _drag(page, *args)
    elif name == "scroll":
        x, y = (float(pixels) / SCREENSHOT_SCALE for pixels in args)
        await page.mouse_events({"type": "mouseWheel", "deltaX": x, "deltaY": y})
    elif name in ("click_at", "drag"):
        await _at_points(page, action)
    elif name != "noop":
        raise AssertionError(f"no such action: {name}")


async def _move_to(page: Page, bid: Any, *, enabled: bool = True, **held: Any) -> None:
    for attempt in range(POINTING_ATTEMPTS):
        point = await page.call("point", bid, enabled, attempt)
        page.mouse = (point["x"], point["y"])
        await page.mouse_events({"type": "mouseMoved", **held})
        # The element under the pointer may grow or move, and another one take its place; while
        # dragging, the dragged element is under it.
        if held or (await page.call("under", bid, *page.mouse))["is"]:
            return
    raise ActionRefused("another element covers it")


async def _click(page: Page, *, times: int = 1) -> None:
    counts = [n for n in range(1, times + 1) for _ in ("press", "release")]
    pairs = zip([_PRESS, _RELEASE] * times, counts, strict=True)
    await page.mouse_events(*(event | {"clickCount": count} for event, count in pairs))


async def _drag(page: Page, source: Any, destination: Any) -> None:
    await _move_to(page, source, enabled=False)
    await page.mouse_events(_PRESS)
    try:
        await _move_to(page, destination, enabled=False, button="left", buttons=1)
    finally:
        await page.mouse_events(_RELEASE)


async def _at_points(page: Page, action: Action) -> None:
    for x, y in action.points:
        await page.call("inside", x, y)
    (x, y), *further = action.points
    page.mouse = (x, y)
    await page.mouse_events({"type": "mouseMoved"})
    if not further:
        return await _click(page)
    await page.mouse_events(_PRESS)
    try:
        for page.mouse in between((x, y), further[0]):
            # One after another: the page takes events that wait together as one.
            await page.mouse_events({"type": "mouseMoved", "button": "left", "buttons": 1})
    finally:
        await page.mouse_events(_RELEASE)


async def _set_checked(page: Page, bid: Any, wanted: bool) -> None:
    if (await page.call("checked", bid))["is"] == wanted:
        return
    await _move_to(page, bid)
    await _click(page)
    if (await page.call("checked", bid))["is"] != wanted:
        raise ActionRefused("clicking it did not change its state")


async def _fill(page: Page, bid: str, text: str) -> None:
    field = await page.call("fill", bid, text)
    if field.get("type"):
        await page.send("Input.insertText", text=field["type"])
    elif "type" in field:
        await page.key_events(keyboard.events("Delete"))
