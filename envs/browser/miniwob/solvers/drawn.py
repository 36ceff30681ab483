"""Solvers of tasks about shapes, letters and colours that are drawn, and clicked."""

from __future__ import annotations

from envs.browser.actions import Action
from envs.browser.drawings import Drawing
from envs.browser.miniwob.solvers.helpers import Page, Solver, click, groups, plan, quoted, submit
from envs.browser.miniwob.solvers.points import click_at, css_name, drawn

LARGE = 15
"""Pixels: large shapes and letters are higher, small ones are lower."""


def ascending_numbers(goal: str, elements: Page, step: int) -> Action:
    """Click on the numbers in ascending order. After the first click boxes hide them, in order."""
    numbers = [e for e in drawn(elements) if e.role == "lettering"]
    if numbers:
        return click_at(min(numbers, key=lambda e: (len(e.name), e.name)).middle)
    return click_at(drawn(elements, "rectangle")[0].middle)


def click_pie(goal: str, elements: Page, step: int) -> Action:
    """Expand the pie menu below and click on the item labeled "M"."""
    for name in (quoted(goal)[0], "+"):
        for item in drawn(elements, "lettering"):
            if item.name == name:
                return click_at(item.middle)
    return Action("noop")  # it is still opening


@plan
def grid_coordinate(goal: str, elements: Page) -> list[Action]:
    """Click on the grid coordinate (-1,0)."""
    x, y = map(int, groups(r"\((-?\d+),(-?\d+)\)", goal))
    points = [point.middle for point in drawn(elements, "circle", count=9)]
    (left, right), (top, bottom) = [(min(axis), max(axis)) for axis in zip(*points, strict=True)]
    middle = (left + right) / 2, (top + bottom) / 2
    unit = min(abs(p[0] - middle[0]) for p in points if abs(p[0] - middle[0]) > 1)
    return [click_at((middle[0] + x * unit, middle[1] - y * unit))]


@plan
def click_color(goal: str, elements: Page) -> list[Action]:
    """Click on the olive colored box."""
    (colour,) = groups(r"Click on the (\w+) colored box", goal)
    boxes = [box for box in drawn(elements, "box") if box.fill == css_name(colour)]
    if not boxes:
        raise LookupError(f"expected a {colour} box, got the page {list(map(str, elements))}")
    return [click(boxes[0])]


def click_shades(goal: str, elements: Page, step: int) -> Action:
    """Select all the shades of red and press Submit. What is selected has an outline."""
    (colour,) = groups(r"shades of (\w+)", goal)
    for box in drawn(elements, "box"):
        if box.fill.split()[-1] == colour and not box.outline:
            return click(box)
    return submit(elements)


def described(text: str, elements: Page) -> list[Drawing]:
    """Return the drawings that a description fits, such as `small black 8`."""
    *adjectives, noun = text.split()
    return [e for e in drawn(elements, count=0) if _fits(e, adjectives, noun)]


def _fits(drawing: Drawing, adjectives: list[str], noun: str) -> bool:
    kind = "shape"
    if drawing.role == "lettering":
        kind = "digit" if drawing.name.isdigit() else "letter"
    its_name = drawing.name or drawing.role
    size = "large" if drawing.size[1] > LARGE else "small"
    return noun in ("item", kind, its_name) and all(
        word == size if word in ("large", "small") else css_name(word) == drawing.fill
        for word in adjectives
    )


@plan
def click_shape(goal: str, elements: Page) -> list[Action]:
    """Click on a small black 8."""
    (text,) = groups(r"Click on an? (.+)", goal)
    found = described(text, elements)
    if not found:
        raise LookupError(f"expected a {text!r}, got the page {list(map(str, elements))}")
    return [click_at(found[0].middle)]


@plan
def count_shape(goal: str, elements: Page) -> list[Action]:
    """How many small blue letters are there?"""
    (text,) = groups(r"How many (.+)s are there", goal)
    return [submit(elements, str(len(described(text, elements))))]


@plan
def identify_shape(goal: str, elements: Page) -> list[Action]:
    """Click the button that best describes the figure below."""
    figure = drawn(elements, "circle", "rectangle", "triangle", "lettering")[0]
    names = {"digit": "Number", "letter": "Letter", "shape": figure.role.capitalize()}
    return [submit(elements, next(names[kind] for kind in names if _fits(figure, [], kind)))]


SOLVERS: dict[str, Solver] = {
    "ascending-numbers": ascending_numbers,
    "click-color": click_color,
    "click-pie": click_pie,
    "click-shades": click_shades,
    "click-shape": click_shape,
    "count-shape": count_shape,
    "grid-coordinate": grid_coordinate,
    "identify-shape": identify_shape,
}
