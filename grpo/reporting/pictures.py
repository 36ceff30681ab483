"""Pictures of pages: outlines around what was acted on, and the border cut off."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from envs.base import Box

if TYPE_CHECKING:
    from PIL.Image import Image

OUTLINE = "#ff00d0"
WIDTH = 3
MARGIN = 8
"""Pixels of the border that stay on a picture, where it has one on both sides."""


def outlined(picture: bytes, boxes: Sequence[Box]) -> bytes:
    """Draw an outline around each box of a picture; return the PNG.

    Raises:
        ModuleNotFoundError: there are boxes, and pillow is not installed.
        ValueError: the picture cannot be read.
    """
    if not boxes:
        return picture
    try:
        from PIL import ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "outlines on screenshots need pillow: install the extra 'browser'"
        ) from error
    image = _read(picture)
    draw = ImageDraw.Draw(image)
    for x, y, width, height in boxes:
        right, bottom = min(x + width + WIDTH, image.width), min(y + height + WIDTH, image.height)
        left, top = max(x - WIDTH, 0), max(y - WIDTH, 0)  # around it, but on the picture
        if left < right and top < bottom:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=OUTLINE, width=WIDTH)
    return _as_png(image)


def cropped(pictures: Sequence[bytes]) -> list[bytes]:
    """Cut the border off an episode's pictures, off all of them alike.

    The border is what surrounds the pages in a single colour, that of the lower right corner, on
    every picture. Pictures of several sizes, or of one colour alone, stay as they are; so do all
    where pillow is not installed.

    Raises:
        ValueError: a picture cannot be read.
    """
    try:
        from PIL import Image, ImageChops
    except ModuleNotFoundError:
        return list(pictures)
    images = [_read(picture) for picture in pictures]
    sizes, contents = {image.size for image in images}, []
    if len(sizes) != 1:
        return list(pictures)
    (size,) = sizes
    for image in images:
        colour = image.getpixel((size[0] - 1, size[1] - 1))
        contents.append(ImageChops.difference(image, Image.new("RGB", size, colour)).getbbox())
    boxes = [box for box in contents if box is not None]
    if not boxes:
        return list(pictures)
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    left, top, right, bottom = min(lefts), min(tops), max(rights), max(bottoms)
    x = min(MARGIN, left, size[0] - right)
    y = min(MARGIN, top, size[1] - bottom)
    box = (left - x, top - y, right + x, bottom + y)
    return [_as_png(image.crop(box)) for image in images]


def _read(picture: bytes) -> Image:
    """Decode a picture.

    Raises:
        ValueError: it is broken, or too large.
    """
    from PIL import Image

    try:
        return Image.open(io.BytesIO(picture)).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read: {error}") from error


def _as_png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
