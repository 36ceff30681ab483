"""Drawings of a page as lines: shapes, coloured boxes and canvases, with their places and colours.

Only `envs.browser.server` sends them, beside BrowserGym's tree, which does not have them. Places
are in pixels of the window, from its top left corner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.base import Box
from envs.browser.colours import colour_name
from envs.browser.fields import of_type, read_box, read_number
from envs.browser.foreign_text import brief, one_line
from envs.browser.limits import MAX_COORDINATE, MAX_DRAWINGS, MAX_DRAWN_TEXT, MAX_ID
from envs.browser.page_text import Element

ROLES = {
    **{"circle": "circle", "ellipse": "ellipse", "rect": "rectangle", "line": "line"},
    **{"polygon": "polygon", "polyline": "polyline", "path": "path", "text": "lettering"},
    **{"box": "box", "canvas": "canvas"},
}
"""Roles of drawings by the names of their SVG elements; `box` is an HTML element with a colour."""

DRAWN_ROLES = frozenset([*ROLES.values(), "triangle"])
"""Roles that drawings alone have: Chromium's tree has none of them."""

MAX_SIDES = 1_000

_GUESSED_PLACE = re.compile(r"(^|, )(row \d+ column \d+|\d+ of \d+)$")
"""The end of a guess that says where an element is among its like; see `names.js`."""


@dataclass(frozen=True)
class Drawing(Element):
    """An element with a place: `red circle at 40,88 size 20x20`, where 40,88 is its middle.

    The colour comes first, as goals name it, and what an answer copies (id, place) follows.

    Attributes:
        box: left, top, width and height in pixels.
        fill: its colour in words; empty if it has none.
        outline: colour of its outline; empty if it has none, or the same.
        sides: sides of a polygon, otherwise 0.
        ends: x, y of the two ends of a line, otherwise empty.
    """

    box: Box = (0.0, 0.0, 0.0, 0.0)
    fill: str = ""
    outline: str = ""
    sides: int = 0
    ends: tuple[int, ...] = ()

    @property
    def middle(self) -> tuple[int, int]:
        """The point in its middle, rounded as the line shows it."""
        x, y, width, height = self.box
        return round(x + width / 2), round(y + height / 2)

    @property
    def size(self) -> tuple[int, int]:
        """Its width and height, rounded as the line shows them."""
        return round(self.box[2]), round(self.box[3])

    def __str__(self) -> str:
        text = f"{self.fill} " * bool(self.fill) + super().__str__()
        if self.sides > 3:
            text += f" with {self.sides} sides"
        if self.ends:
            x1, y1, x2, y2 = self.ends
            text += f" from {x1},{y1} to {x2},{y2}"
        else:
            (x, y), (width, height) = self.middle, self.size
            text += f" at {x},{y} size {width}x{height}"
        return text + f", {self.outline} outline" * bool(self.outline)


def read_drawings(value: Any) -> tuple[Drawing, ...]:
    """Read the drawings that a server sent, with the server's ids.

    Raises:
        ValueError: this is not a list of drawings, or over a limit; the message says why.
    """
    if len(of_type(list, value, "drawings")) > MAX_DRAWINGS:
        raise ValueError(f"there may be {MAX_DRAWINGS} drawings, got {len(value)}")
    return tuple(_read(of_type(dict, each, "a drawing")) for each in value)


def with_drawings(
    elements: Sequence[Element], drawings: Sequence[Drawing], places: Mapping[str, Box]
) -> list[Element]:
    """Return a page with the places of its elements, and its drawings at the end.

    A text that a drawing repeats is left out. An element that the page has only by a guessed name
    is one line with its drawing, so that its id is beside what it looks like; the drawing's place
    replaces a guessed one.

    Args:
        elements: the page.
        drawings: what is drawn on it.
        places: rectangles by ids of elements; empty where only drawings have places.
    """
    drawn = {(id_, drawing.name) for drawing in drawings for id_ in ("", drawing.id)}
    of_ids = {drawing.id: drawing for drawing in drawings}
    moved: dict[str, Drawing] = {}
    page: list[Element] = []
    for element in elements:
        if element.role == "text" and (element.id, element.name) in drawn:
            continue
        if element.role == "element" and element.id in of_ids:
            drawing = moved[element.id] = of_ids[element.id]
            guess = "" if drawing.name else _GUESSED_PLACE.sub("", element.guess)
            page.append(replace(drawing, guess=guess, state=element.state))
        elif element.id in places:
            page.append(Drawing(**vars(element), box=places[element.id]))
        else:
            page.append(element)
    return [*page, *(each for each in drawings if moved.get(each.id) is not each)]


def element_under(boxes: Mapping[str, Box], x: float, y: float) -> str:
    """Return the id of the smallest rectangle around a point; '' if there is none."""
    around = [
        (width * height, bid)
        for bid, (left, top, width, height) in boxes.items()
        if left <= x <= left + width and top <= y <= top + height
    ]
    return min(around)[1] if around else ""


def _read(value: dict[str, Any]) -> Drawing:
    kind = value.get("kind")
    if kind not in ROLES:
        raise ValueError(f"a drawing must be one of {', '.join(ROLES)}, got {brief(kind)}")
    bid = of_type(str, value.get("id", ""), "the id of a drawing")
    text = of_type(str, value.get("text", ""), "the text of a drawing")
    if len(bid) > MAX_ID or len(text) > MAX_DRAWN_TEXT:
        raise ValueError(f"the id or the text of a drawing is too long: {brief(bid + text)}")
    fill, outline = (_colour(value.get(name)) for name in ("fill", "stroke"))
    sides = int(read_number(value.get("sides", 0), "sides", MAX_SIDES))
    ends = of_type(list, value.get("ends", []), "the ends of a line")
    if kind == "line" and len(ends) != 4:
        raise ValueError(f"a line must have ends of 4 numbers, got {len(ends)}")
    numbers = [round(read_number(end, "an end of a line", MAX_COORDINATE)) for end in ends]
    return Drawing(
        id=bid,
        role="triangle" if sides == 3 else ROLES[kind],
        name=one_line(text),
        box=read_box(value.get("box"), "the box of a drawing"),
        fill=outline if kind == "line" else fill,
        outline="" if outline == fill or kind == "line" else outline,
        sides=max(sides, 0),
        ends=tuple(numbers) if kind == "line" else (),
    )


def _colour(rgb: Any) -> str:
    if rgb is None:
        return ""
    if len(of_type(list, rgb, "a colour")) != 3:
        raise ValueError(f"a colour must be 3 numbers, got {len(rgb)}")
    return colour_name([abs(read_number(number, "a colour", 255.0)) for number in rgb])
