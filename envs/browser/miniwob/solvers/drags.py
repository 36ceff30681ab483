"""Solvers of tasks in which something is dragged, drawn or selected from one point to another."""

from __future__ import annotations

import re

from envs.browser.actions import Action
from envs.browser.drawings import Drawing
from envs.browser.miniwob.solvers.helpers import Page, Solver, groups, plan, submit
from envs.browser.miniwob.solvers.points import Point, css_name, drag, drawn, minus, placed, plus

STROKE = 28
"""Pixels on either side of the dot that a drawn line runs through."""


DIRECTIONS = {"left": (-25, 0), "right": (25, 0), "up": (0, -25), "down": (0, 25)}


@plan
def drag_direction(goal: str, elements: Page) -> list[Action]:
    """Drag the circle left then press Submit."""
    (direction,) = groups(r"Drag the \w+ (left|right|up|down)", goal)
    middle = drawn(elements)[0].middle
    return [drag(middle, plus(middle, DIRECTIONS[direction])), submit(elements)]


def drag_shapes(goal: str, elements: Page, step: int) -> Action:
    """Drag all magenta shapes into the left box, and everything else into the right box."""
    (kind,) = groups(r"Drag all (\w+)s? (?:shapes )?into", goal)
    shapes = [e for e in drawn(elements) if e.fill]
    boxes = sorted((e for e in drawn(elements, "rectangle") if not e.fill), key=lambda e: e.middle)
    if not boxes:
        raise LookupError(f"expected a box, got the page {list(map(str, elements))}")
    for shape in shapes:
        wanted = kind.removesuffix("s") == shape.role or css_name(kind) == shape.fill
        target = boxes[0] if wanted else boxes[-1]
        if (wanted or len(boxes) > 1) and not _inside(shape, target):
            return drag(shape.middle, target.middle)
    return submit(elements)


def _inside(shape: Drawing, box: Drawing) -> bool:
    x, y = shape.middle
    (middle_x, middle_y), (width, height) = box.middle, box.size
    return abs(x - middle_x) < width / 2 and abs(y - middle_y) < height / 2


@plan
def draw_line(goal: str, elements: Page) -> list[Action]:
    """Draw a vertical line that runs through the dot, then press submit."""
    (direction,) = groups(r"Draw a (horizontal|vertical) line", goal)
    x, y = minus(drawn(elements, "circle")[0].middle, (1, 1))  # MiniWoB's own dot is further left
    dx, dy = (STROKE, 0) if direction == "horizontal" else (0, STROKE)
    return [drag((x - dx, y - dy), (x + dx, y + dy)), submit(elements)]


ORDINALS = {"top": 1, "1st": 1, "2nd": 2, "3rd": 3, "4th": 4, "5th": 5, "bottom": 5}


@plan
def drag_items(goal: str, elements: Page) -> list[Action]:
    """Drag Lyssa down by one position."""
    name, where = groups(r"^Drag (\w+) (.+)\.$", goal)
    items = placed(elements, 5)
    position = start = [item.name for item in items].index(name)
    if where.endswith("by one position"):
        position += 1 if where.startswith("down") else -1
    else:
        position = ORDINALS[groups(r"to the (\w+)", where)[0]] - 1
    return [drag(items[start].middle, _beyond(items[start], items[position]))]


BEYOND = 14
"""Pixels from the middle of a name to the edge of its item, which has no line of its own."""

COLUMNS, ROWS = ("left", "center", "right"), ("top", "center", "bottom")
STEPS = {"up": -3, "down": 3, "left": -1, "right": 1}


@plan
def drag_items_grid(goal: str, elements: Page) -> list[Action]:
    """Drag Toby to the top left."""
    name, where = groups(r"^Drag (\w+) (.+)\.$", goal)
    items = placed(elements, 9)
    start = [item.name for item in items].index(name)
    if where.endswith(" by one"):
        position = start + STEPS[where.split()[0]]
    else:
        words = where.removeprefix("to the ").split()
        position = 3 * ROWS.index(words[0]) + COLUMNS.index(words[-1])
    return [drag(items[start].middle, _beyond(items[start], items[position]))]


def _beyond(item: Drawing, target: Drawing) -> Point:
    """Return a point a little further from the item than the middle of the target."""
    (x1, y1), (x2, y2) = item.middle, target.middle
    return x2 + BEYOND * ((x2 > x1) - (x2 < x1)), y2 + BEYOND * ((y2 > y1) - (y2 < y1))


@plan
def highlight_text(goal: str, elements: Page) -> list[Action]:
    """Highlight the text in the 2nd paragraph and click submit."""
    found = re.search(r"(\d)\w\w paragraph", goal)
    nth = int(found[1]) if found else 1
    text = placed(elements, nth)[nth - 1]
    (x, y), (width, height) = text.middle, text.size
    corner = (width / 2, height / 2 - 2)
    return [drag(minus((x, y), corner), plus((x, y), corner)), submit(elements)]


SOLVERS: dict[str, Solver] = {
    "drag-circle": drag_direction,
    "drag-items": drag_items,
    "drag-items-grid": drag_items_grid,
    "drag-shapes": drag_shapes,
    "drag-shapes-2": drag_shapes,
    "drag-single-shape": drag_direction,
    "draw-line": draw_line,
    "highlight-text": highlight_text,
    "highlight-text-2": highlight_text,
}
