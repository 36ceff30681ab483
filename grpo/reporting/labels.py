"""A screenshot with the ids of its elements drawn on it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from envs.base import Box
from grpo.safe_output import one_line

Rect = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside."""

COLOURS = ("#c2185b", "#1565c0", "#2e7d32", "#b34700", "#6a1b9a", "#00727d")
"""White text can be read on each, and neighbours differ."""

MARGIN = "#e4e4e7"
MARGIN_WIDTH = 28
FONT_SIZE = 16
LINE = 2
PADDING = (4, 2)
WIDE = 900
"""Pixels; a narrower screenshot is enlarged, so that labels are small beside its elements."""

EDGE = 24
"""Difference of brightness between neighbours from which on pixels count as drawn on."""

OTHERS = 0.2
"""Price of a pixel of another element under a label, where one of a drawing costs 1."""

NEAR = 6
BESIDE_ANOTHER = 10
"""Price of each other element that a label is near to, in pixels."""

STEP = 8


def labelled(picture: bytes, boxes: Mapping[str, Box]) -> bytes:
    """Draw an outline and a label for each element; labels do not cover one another.

    A label stands at its element, where it covers little, or at the nearest free place with a line
    to its element. Elements that are not on the picture are left out.

    Args:
        picture: the screenshot.
        boxes: rectangles of the elements by their id.

    Returns:
        The picture as PNG, perhaps enlarged, with a margin.

    Raises:
        ModuleNotFoundError: pillow is not installed.
        ValueError: the picture cannot be read.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "labels on screenshots need pillow: install the extra 'browser'"
        ) from error
    try:
        page = Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the screenshot cannot be read: {error}") from error
    scale = max(1, round(WIDE / page.width))
    page = page.resize((page.width * scale, page.height * scale), Image.Resampling.LANCZOS)
    size = (page.width + 2 * MARGIN_WIDTH, page.height + 2 * MARGIN_WIDTH)
    canvas = Image.new("RGB", size, MARGIN)
    canvas.paste(page, (MARGIN_WIDTH, MARGIN_WIDTH))

    rects = _on_canvas(boxes, scale, page.size)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(rects)}
    font = ImageFont.load_default(FONT_SIZE)
    draw = ImageDraw.Draw(canvas)
    texts = {name: one_line(name) for name in rects}
    inks = {name: tuple(map(int, draw.textbbox((0, 0), texts[name], font))) for name in rects}
    sizes = {
        name: (right - left + 2 * PADDING[0], bottom - top + 2 * PADDING[1])
        for name, (left, top, right, bottom) in inks.items()
    }
    places = place_labels(np.asarray(canvas.convert("L")), rects, sizes)
    for name, (left, top, right, bottom) in rects.items():
        around = (left - LINE, top - LINE, right + LINE - 1, bottom + LINE - 1)
        draw.rectangle(around, None, colours[name], LINE)
    for name, (spot, at_element) in places.items():
        if not at_element:
            ends = (*_nearest(rects[name], _centre(spot)), *_centre(spot))
            draw.line(ends, colours[name], LINE)
    for name, ((left, top, right, bottom), _) in places.items():
        draw.rounded_rectangle((left, top, right - 1, bottom - 1), 3, colours[name])
        origin = (left + PADDING[0] - inks[name][0], top + PADDING[1] - inks[name][1])
        draw.text(origin, texts[name], "white", font)
    file = io.BytesIO()
    canvas.save(file, "PNG")
    return file.getvalue()


def _on_canvas(boxes: Mapping[str, Box], scale: int, page: tuple[int, int]) -> dict[str, Rect]:
    """Return the elements' rectangles on the canvas from top to bottom, cut at the page's edges."""
    rects = {}
    for name, (x, y, width, height) in boxes.items():
        left, top = max(0, round(x * scale)), max(0, round(y * scale))
        right = min(page[0], round((x + width) * scale))
        bottom = min(page[1], round((y + height) * scale))
        if right - left > 1 and bottom - top > 1:
            rects[name] = (left, top, right, bottom)
    inside = sorted(rects.items(), key=lambda item: (item[1][1], item[1][0]))
    m = MARGIN_WIDTH
    return {name: (x + m, y + m, right + m, bottom + m) for name, (x, y, right, bottom) in inside}


def place_labels(
    grey: np.ndarray[Any, Any], rects: Mapping[str, Rect], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[Rect, bool]]:
    """Choose a place for the label of each element; no two overlap while there is room.

    Args:
        grey: brightness [height, width] of the canvas: the page within its margin.
        rects: the elements on the canvas.
        sizes: width and height of each label.

    Returns:
        By element its label's rectangle, and whether that is at the element.
    """
    places = _Places(grey.astype(np.int16), list(rects.values()))
    in_order = sorted(rects, key=lambda name: _area(rects[name]))  # small ones have least room
    return {name: places.find(rects[name], *sizes[name]) for name in in_order}


class _Places:
    """Finds places for labels, and keeps in mind those that are taken."""

    def __init__(self, grey: np.ndarray[Any, Any], elements: Sequence[Rect]):
        price = np.zeros(grey.shape)
        price[:, 1:] += np.abs(np.diff(grey, axis=1)) > EDGE
        price[1:] += np.abs(np.diff(grey, axis=0)) > EDGE
        page = np.zeros_like(price)  # 1 on the page, its border aside
        page[MARGIN_WIDTH + 1 : -MARGIN_WIDTH, MARGIN_WIDTH + 1 : -MARGIN_WIDTH] = 1
        price *= page
        for left, top, right, bottom in elements:
            price[top:bottom, left:right] += OTHERS
        self._sums = np.pad(price, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        self._height, self._width = grey.shape
        self._elements = elements
        self._taken: list[Rect] = []

    def find(self, element: Rect, width: int, height: int) -> tuple[Rect, bool]:
        """Return a free place for an element's label, and whether it is at the element."""
        at_element = self._free(_corners(element, width, height), width, height)
        if at_element:
            prices = [self._price(rect, element) + i for i, rect in enumerate(at_element)]
            best = at_element[prices.index(min(prices))]
        else:
            anywhere = self._free(self._grid(width, height), width, height)
            centre = _centre(element)
            best = min(
                anywhere or [(element[0], element[1], element[0] + width, element[1] + height)],
                key=lambda rect: (
                    abs(_centre(rect)[0] - centre[0]) + abs(_centre(rect)[1] - centre[1])
                ),
            )
        self._taken.append(best)
        return best, bool(at_element)

    def _free(self, corners: Iterable[tuple[int, int]], width: int, height: int) -> list[Rect]:
        free = []
        for x, y in corners:
            rect = (x, y, x + width, y + height)
            on_canvas = x >= 0 and y >= 0 and rect[2] <= self._width and rect[3] <= self._height
            if on_canvas and not any(_overlap(rect, other) for other in self._taken):
                free.append(rect)
        return free

    def _grid(self, width: int, height: int) -> Iterator[tuple[int, int]]:
        for y in range(0, self._height - height, STEP):
            yield from ((x, y) for x in range(0, self._width - width, STEP))

    def _price(self, rect: Rect, element: Rect) -> float:
        """Return what a label would cover, its own element's free space aside.

        Beside another element it could be taken for that one's.
        """
        left, top, right, bottom = rect
        sums = self._sums
        whole = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        near = (left - NEAR, top - NEAR, right + NEAR, bottom + NEAR)
        others = sum(bool(_overlap(near, each)) for each in self._elements if each != element)
        return float(whole) - OTHERS * _overlap(rect, element) + BESIDE_ANOTHER * others


def _corners(element: Rect, width: int, height: int) -> list[tuple[int, int]]:
    """Return where a label of this size can stand at its element, the usual places first."""
    left, top, right, bottom = element
    middle = (top + bottom - height) // 2
    over, under = top - height - LINE, bottom + LINE
    before, after = left - width - LINE, right + LINE
    places = [(left, over), (before, middle), (after, middle), (left, under)]
    places += [(right - width, over), (right - width, under)]
    if right - left >= 2 * width and bottom - top >= height:  # inside, where it leaves a half
        places += [(right - width, middle), (right - width, top), (left, top)]
    for x in range(left + width, right - 2 * width, max(width, STEP)):
        places += [(x, over), (x, under), (x, top)]
    return places


def _overlap(a: Rect, b: Rect) -> int:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height)


def _area(rect: Rect) -> int:
    return _overlap(rect, rect)


def _centre(rect: Rect) -> tuple[int, int]:
    return (rect[0] + rect[2]) // 2, (rect[1] + rect[3]) // 2


def _nearest(rect: Rect, point: tuple[int, int]) -> tuple[int, int]:
    """Return the point of a rectangle that is nearest to another point."""
    x = min(max(point[0], rect[0]), rect[2] - 1)
    return x, min(max(point[1], rect[1]), rect[3] - 1)
