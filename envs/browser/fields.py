"""Fields of a server's response: each is checked for its type and its limit, or is a ValueError."""

from __future__ import annotations

import base64
import io
from typing import Any

from envs.base import Box
from envs.browser.foreign_text import brief, clean, one_line
from envs.browser.limits import (
    MAX_COORDINATE,
    MAX_ERROR,
    MAX_GOAL,
    MAX_LINES,
    MAX_NAME,
    MAX_PAGE,
    MAX_PIXELS,
    MAX_URL,
)

MAX_TEXT = {
    **{"axtree_txt": MAX_PAGE, "goal": MAX_GOAL, "url": MAX_URL, "error": MAX_PAGE},
    **{"task_name": MAX_ERROR, "actions": MAX_ERROR, "demonstration": MAX_GOAL},
}
"""Characters that the texts of a response may have."""

MAX_LIST = 100

_NO_BRACKETS = str.maketrans("()[]", "    ")  # in which the page has such a name and the ids


def read_png(screenshot: Any) -> bytes | None:
    """Return a picture as a PNG: base64 of one, or lists of pixels `[H][W][3]`; None for None."""
    if screenshot is None:
        return None
    import numpy as np
    from PIL import Image

    if isinstance(screenshot, str):
        png = base64.b64decode(screenshot, validate=True)
        try:
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"it has {image.width} x {image.height} pixels")
                image.load()  # what cannot be decoded would end a gallery later
        except Exception as error:  # Pillow raises many types, also SyntaxError and zlib's own
            raise ValueError(f"the screenshot is not a PNG: {error}") from error
        return png
    try:
        pixels = np.array(screenshot, dtype=np.uint8)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the screenshot is not a list of pixels: {error}") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a screenshot must be [H, W, 3], got {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def read_boxes(boxes: Any) -> dict[str, Box]:
    """Return rectangles by the ids of their elements."""
    found = {}
    if len(of_type(dict, boxes, "boxes")) > MAX_LINES:
        raise ValueError(f"there may be {MAX_LINES} boxes, got {len(boxes)}")
    for bid, box in boxes.items():
        found[bid] = read_box(box, f"the box of {bid[:80]}")
    return found


def read_names(names: Any) -> dict[str, str]:
    """Return names by the ids of their elements, each one line without brackets."""
    if len(of_type(dict, names, "names")) > MAX_LINES:
        raise ValueError(f"there may be {MAX_LINES} names, got {len(names)}")
    found = {}
    for bid, name in names.items():
        text = of_type(str, name, f"the name of {bid[:80]}").translate(_NO_BRACKETS)
        found[bid] = one_line(text, MAX_NAME).strip()
    return found


def read_box(box: Any, name: str) -> Box:
    """Return a rectangle."""
    if len(of_type(list, box, name)) != 4:
        raise ValueError(f"{name} must be 4 numbers, got {len(box)}")
    x, y, width, height = (read_number(number, name, MAX_COORDINATE) for number in box)
    return x, y, width, height


def read_list(value: Any, name: str) -> list[Any]:
    """Return a short list."""
    if len(of_type(list, value, name)) > MAX_LIST:
        raise ValueError(f"{name} may have {MAX_LIST} entries, got {len(value)}")
    found: list[Any] = value
    return found


def read_number(number: Any, name: str, limit: float) -> float:
    """Return a finite number with an absolute value of at most `limit`."""
    if type(number) not in (int, float) or not abs(number) < float("inf"):  # NaN is not
        raise ValueError(f"{name} must be a finite number, got {brief(number)}")
    if abs(number) > limit:
        raise ValueError(f"{name} must be from -{limit:g} to {limit:g}, got {brief(number)}")
    return float(number)


def read_text(value: Any, name: str) -> str:
    """Return a text without control characters; None is an empty one."""
    text: str = of_type(str, "" if value is None else value, name)
    if len(text) > MAX_TEXT[name]:
        raise ValueError(f"{name} may have {MAX_TEXT[name]} characters, got {len(text)}")
    return clean(text)


def of_type(kind: type, value: Any, name: str) -> Any:
    """Return a value of a type."""
    if not isinstance(value, kind):
        shown = value[:80] if isinstance(value, str) else brief(value)
        raise ValueError(f"{name} must be a {kind.__name__}, got {shown!r}")
    return value
