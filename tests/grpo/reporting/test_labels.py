"""Screenshots with the ids of elements: labels that can be read, told apart and assigned."""

import io
import itertools
import random
import sys

import numpy as np
import pytest
from PIL import Image

from grpo.reporting.labels import COLOURS, LINE, MARGIN_WIDTH, WIDE, labelled, place_labels

SIZE = (26, 18)
"""Of a label of two digits."""


def png(width=WIDE, height=600, colour="white"):
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def placed(rects, grey=None, size=SIZE):
    grey = np.full((656, 856), 255) if grey is None else grey
    return place_labels(grey, rects, dict.fromkeys(rects, size))


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def random_rects(seed, count=60):
    """Rectangles of all sizes, also on top of one another, within the margin of the canvas."""
    rng = random.Random(seed)
    rects = {}
    for i in range(count):
        x, y = rng.randrange(28, 760), rng.randrange(28, 600)
        rects[str(i)] = (
            x,
            y,
            min(x + rng.randrange(4, 300), 828),
            min(y + rng.randrange(4, 80), 628),
        )
    return rects


@pytest.mark.parametrize("seed", range(5))
def test_labels_do_not_cover_one_another_and_are_on_the_canvas(seed):
    spots = [spot for spot, _ in placed(random_rects(seed)).values()]
    assert len(spots) == 60
    assert not [pair for pair in itertools.combinations(spots, 2) if overlap(*pair)]
    for left, top, right, bottom in spots:
        assert (right - left, bottom - top) == SIZE
        assert left >= 0
        assert top >= 0
        assert right <= 856
        assert bottom <= 656


def test_elements_in_one_place_have_labels_all_the_same():
    spots = placed({str(i): (100, 100, 140, 120) for i in range(50)})
    at_element = [spot for spot, at_element in spots.values() if at_element]
    assert 2 <= len(at_element) < 50
    every = [spot for spot, _ in spots.values()]
    assert not [pair for pair in itertools.combinations(every, 2) if overlap(*pair)]


def test_a_label_stands_above_its_element_on_an_empty_page():
    ((spot, at_element),) = placed({"a": (200, 100, 400, 140)}).values()
    assert at_element
    assert spot == (200, 100 - LINE - SIZE[1], 200 + SIZE[0], 100 - LINE)


@pytest.mark.parametrize("strokes", [np.s_[60:98, 100:700:2], np.s_[60:98:2, 100:700]])
def test_a_label_covers_no_text_where_there_is_room(strokes):
    grey = np.full((656, 856), 255)
    grey[strokes] = 0  # above the element
    ((spot, _),) = placed({"a": (200, 100, 400, 140)}, grey).values()
    assert not overlap(spot, (100, 60, 700, 98))


def test_a_label_is_not_between_elements_where_there_is_room_beside_them():
    rows = {str(i): (100, 100 + 30 * i, 140, 122 + 30 * i) for i in range(5)}
    for name, (spot, _) in placed(rows).items():
        others = [rect for other, rect in rows.items() if other != name]
        assert not [rect for rect in others if overlap(spot, rect)]
        middle = (spot[1] + spot[3]) / 2
        assert rows[name][1] <= middle <= rows[name][3] or name == "0"


def read(picture):
    return Image.open(io.BytesIO(picture)).convert("RGB")


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_outlines_are_around_the_elements_from_top_to_bottom_in_other_colours():
    boxes = {"9": (300.0, 300.0, 80.0, 30.0), "12": (40.0, 50.0, 100.0, 40.0)}
    image = read(labelled(png(), boxes))
    assert image.size == (WIDE + 2 * MARGIN_WIDTH, 600 + 2 * MARGIN_WIDTH)
    for colour, (x, y, width, height) in zip(COLOURS, (boxes["12"], boxes["9"]), strict=False):
        left, top = int(x) + MARGIN_WIDTH, int(y) + MARGIN_WIDTH
        right, bottom = left + int(width), top + int(height)
        for point in ((right, top + 5), (left + 60, bottom), (right - 1 + LINE, bottom)):
            assert image.getpixel(point) == rgb(colour), point
        assert image.getpixel((left + 5, top + 5)) == (255, 255, 255)


def test_the_text_is_white_on_the_colour():
    image = read(labelled(png(colour="#204060"), {"57": (300, 300, 80, 30)}))
    box = (300 + MARGIN_WIDTH, 278 + MARGIN_WIDTH, 330 + MARGIN_WIDTH, 298 + MARGIN_WIDTH)
    colours = [colour for _, colour in image.crop(box).getcolors(10_000)]
    assert rgb(COLOURS[0]) in colours
    assert max(map(min, colours)) > 240


def test_a_small_screenshot_is_enlarged():
    image = read(labelled(png(332, 214), {"1": (10, 20, 30, 10)}))
    assert image.size == (3 * 332 + 2 * MARGIN_WIDTH, 3 * 214 + 2 * MARGIN_WIDTH)
    assert image.getpixel((3 * 40 + MARGIN_WIDTH, 3 * 25 + MARGIN_WIDTH)) == rgb(COLOURS[0])


def test_elements_outside_of_the_picture_are_left_out():
    outside = {"1": (-50, 10, 40, 20), "2": (10, 700, 40, 20), "3": (5, 5, 0, 10)}
    assert labelled(png(), outside) == labelled(png(), {})
    cut = read(labelled(png(), {"4": (WIDE - 20, 10, 400, 20)}))
    assert cut.getpixel((WIDE + MARGIN_WIDTH + LINE + 1, MARGIN_WIDTH + 15)) != rgb(COLOURS[0])


def test_an_id_that_is_long_or_not_printable_is_drawn_as_text():
    labelled(png(), {"\x1b[2J" * 20: (10, 10, 20, 20), "x" * 300: (50, 50, 20, 20)})


def test_a_broken_screenshot():
    with pytest.raises(ValueError, match="the screenshot cannot be read"):
        labelled(b"no picture", {})


def test_pillow_is_named_where_it_is_missing(monkeypatch):
    picture = png()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'browser'"):
        labelled(picture, {})
