"""Helpers of the solvers of pages with drawings: find shapes and points, act on points."""

from __future__ import annotations

from envs.browser.actions import Action
from envs.browser.drawings import DRAWN_ROLES, Drawing
from envs.browser.miniwob.solvers.helpers import Page

Point = tuple[float, float]


def drawn(elements: Page, *roles: str, count: int = 1) -> list[Drawing]:
    """Return the drawings of these roles (all if none is given), in page order.

    Raises:
        LookupError: there are fewer than `count`.
    """
    wanted = roles or DRAWN_ROLES
    found = [e for e in elements if isinstance(e, Drawing) and e.role in wanted]
    if len(found) < count:
        raise LookupError(f"expected {count} of {roles}, got the page {list(map(str, elements))}")
    return found


def placed(elements: Page, count: int) -> list[Drawing]:
    """Return the texts that have a place, in page order.

    Raises:
        LookupError: there are fewer than `count`.
    """
    found = [e for e in elements if isinstance(e, Drawing) and e.role == "text"]
    if len(found) < count:
        raise LookupError(f"expected {count} places, got the page {list(map(str, elements))}")
    return found


def click_at(point: Point) -> Action:
    """Return a click on the pixel of a point."""
    return Action("click_at", (round(point[0]), round(point[1])))


def drag(start: Point, end: Point) -> Action:
    """Return a drag from the pixel of one point to that of another."""
    return Action("drag", tuple(max(round(number), 0) for number in (*start, *end)))


def css_name(colour: str) -> str:
    """Return the name of a colour that pages show for a name in a goal."""
    return {"aqua": "cyan", "fuchsia": "magenta", "gray": "grey"}.get(colour, colour)


def plus(point: Point, offset: Point) -> Point:
    """Return the sum of two vectors."""
    return point[0] + offset[0], point[1] + offset[1]


def minus(point: Point, offset: Point) -> Point:
    """Return the difference of two vectors."""
    return point[0] - offset[0], point[1] - offset[1]
