"""What each action does to a page, with the same inputs and checks as Playwright's."""

from __future__ import annotations

from typing import Any

from envs.browser.actions import Action
from envs.browser.server.cdp import keyboard
from envs.browser.server.cdp.page import Page, Refused

SCREENSHOT_SCALE = 1.5
"""BrowserGym takes pixels from a picture this much larger than the page."""

POINTING_ATTEMPTS = 4

_PRESS = {"type": "mousePressed", "button": "left", "clickCount": 1}
_RELEASE = {"type": "mouseReleased", "button": "left", "clickCount": 1}


async def act(page: Page, action: Action) -> None:
    """Do an action.

    Args:
        page: in which elements carry their ids as the attribute `bid`.
        action: one of `envs.browser.actions.ACTIONS`.

    Raises:
        Refused: the page does not let it happen.
        CDPError: the machinery failed.
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
        await page.ask("choose", *args)
    elif name == "focus":
        await page.ask("focus", *args)
    elif name == "press":
        try:
            events = keyboard.events(str(args[1]))
        except ValueError as unknown:
            raise Refused(str(unknown)) from None
        await page.ask("focus", args[0])
        await page.key_events(events)
    elif name == "drag_and_drop":
        await _drag(page, *args)
    elif name == "scroll":
        x, y = (float(pixels) / SCREENSHOT_SCALE for pixels in args)
        await page.mouse_events({"type": "mouseWheel", "deltaX": x, "deltaY": y})
    elif name != "noop":
        raise AssertionError(f"no such action: {name}")


async def _move_to(page: Page, bid: Any, *, enabled: bool = True, **held: Any) -> None:
    for attempt in range(POINTING_ATTEMPTS):
        point = await page.ask("point", bid, enabled, attempt)
        page.mouse = (point["x"], point["y"])
        await page.mouse_events({"type": "mouseMoved", **held})
        # What the pointer is over may grow or move, and then something else is there; while
        # dragging it is what is dragged.
        if held or (await page.ask("under", bid, *page.mouse))["is"]:
            return
    raise Refused("another element covers it")


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


async def _set_checked(page: Page, bid: Any, wanted: bool) -> None:
    if (await page.ask("checked", bid))["is"] == wanted:
        return
    await _move_to(page, bid)
    await _click(page)
    if (await page.ask("checked", bid))["is"] != wanted:
        raise Refused("clicking it did not change its state")


async def _fill(page: Page, bid: str, text: str) -> None:
    field = await page.ask("fill", bid, text)
    if field.get("type"):
        await page.send("Input.insertText", text=field["type"])
    elif "type" in field:
        await page.key_events(keyboard.events("Delete"))
