"""Outlines around what was acted on, and borders that are cut off."""

import io
import sys

import pytest
from PIL import Image

from grpo.reporting.pictures import OUTLINE, cropped, outlined
from tests.support.photographed import opened, pixels, png, ring


def test_the_outline_is_around_the_box():
    assert outlined(png(), []) == png()
    assert pixels(outlined(png(), [(10, 8, 20, 12)]), OUTLINE) == ring(7, 5, 33, 23)
    two = pixels(outlined(png(), [(10, 8, 5, 5), (40, 20, 5, 5)]), OUTLINE)
    assert two == ring(7, 5, 18, 16) | ring(37, 17, 48, 28)


def test_outlines_stay_on_the_picture():
    assert pixels(outlined(png(), [(0.0, 0.0, 60.0, 40.0)]), OUTLINE) == ring(0, 0, 60, 40)
    assert pixels(outlined(png(), [(59, 39, 1, 1)]), OUTLINE)  # no space for a ring
    beside = [(90, 8, 5, 5), (10, 90, 5, 5), (-90, 8, 5, 5)]
    assert not pixels(outlined(png(), beside), OUTLINE)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert outlined(b"a picture", ()) == b"a picture"
    with pytest.raises(ModuleNotFoundError, match="install the extra 'browser'"):
        outlined(b"a picture", [(1, 1, 1, 1)])


def picture(size, background, *boxes):
    image = Image.new("RGB", size, background)
    for colour, box in boxes:
        image.paste(colour, box)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_the_border_is_cut_off_alike():
    """MiniWoB's page is 160 pixels wide, in the upper left corner of a grey picture."""
    page = ("white", (0, 0, 160, 210))
    pictures = [
        picture((332, 214), "#555", page),
        picture((332, 214), "#555", page, ("red", (150, 5, 170, 9))),  # a menu outside the page
    ]
    first, second = opened(cropped(pictures))
    assert first.size == second.size == (170, 210)
    assert first.tobytes() == opened(pictures)[0].crop((0, 0, 170, 210)).tobytes()
    assert opened(cropped(pictures[:1]))[0].size == (160, 210)


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ((100, 50, 300, 90), (92, 42, 308, 98)),  # in the middle: a margin stays
        ((3, 50, 300, 90), (0, 42, 303, 98)),
        ((0, 0, 640, 40), (0, 0, 640, 40)),
        ((0, 0, 10, 480), (0, 0, 10, 480)),
        ((639, 479, 640, 480), (0, 0, 640, 480)),  # the corner is page, the rest is not border
    ],
)
def test_no_page_loses_content(box, left):
    whole = picture((640, 480), "white", ("navy", box))
    (image,) = opened(cropped([whole]))
    assert image.size == (left[2] - left[0], left[3] - left[1])
    assert image.tobytes() == opened([whole])[0].crop(left).tobytes()


def test_pictures_that_are_not_cut(monkeypatch):
    same = [png("white"), png("grey")]
    assert cropped(same) == same
    sizes = [picture((9, 9), "white", ("red", (0, 0, 2, 2))), png()]
    assert cropped(sizes) == sizes
    assert cropped([]) == []
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cropped([b"a picture"]) == [b"a picture"]
