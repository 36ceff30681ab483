"""Drawings: their lines, what a server may send, and the actions on points."""

import re

import pytest

from envs.browser.actions import (
    Action,
    InvalidAction,
    page_actions,
    parse_action,
    possible_actions,
)
from envs.browser.colours import colour_name
from envs.browser.drawings import Drawing, element_under, read_drawings, with_drawings
from envs.browser.page_text import Element
from envs.browser.prompts import ACTION, SYSTEM
from envs.browser.sending import may_send
from envs.browser.server.drawn import drawn_metadata
from envs.browser.server.secrets import Secrets

CIRCLE = {"kind": "circle", "id": "", "box": [30.2, 77.9, 20, 20.4], "fill": [255, 0, 0]}
BLACK = [0, 0, 0]
INK = {**CIRCLE, "kind": "text", "text": "Ink"}
POLYGON = {**CIRCLE, "kind": "polygon"}
LINE = {"kind": "line", "box": [0, 0, 5, 5], "ends": [0, 0.4, 4.6, 5], "stroke": [0, 0, 0]}


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((250, 5, 2), "red"),
        ((0, 255, 255), "cyan"),
        ((128, 128, 128), "grey"),
        ((70, 72, 74), "dark grey"),
        ((247, 246, 248), "white"),
        ((3, 3, 10), "black"),
        ((240, 200, 200), "light red"),
        ((60, 120, 60), "green"),
        ((40, 80, 40), "dark green"),
        ((20, 30, 120), "dark blue"),
        ((255, 0, 42), "red"),
        ((255, 0, 128), "magenta"),
    ],
)
def test_colours_in_words(rgb, name):
    assert colour_name(rgb) == name


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (CIRCLE, "red circle at 40,88 size 20x20"),
        ({**CIRCLE, "stroke": BLACK}, "red circle at 40,88 size 20x20, black outline"),
        ({**CIRCLE, "id": "a7", "fill": BLACK}, "black circle [a7] at 40,88 size 20x20"),
        ({**CIRCLE, "fill": None, "stroke": BLACK}, "circle at 40,88 size 20x20, black outline"),
        ({**CIRCLE, "stroke": [255, 0, 0]}, "red circle at 40,88 size 20x20"),
        ({**CIRCLE, "kind": "text", "text": "A\nb"}, "red lettering 'A b' at 40,88 size 20x20"),
        ({**POLYGON, "sides": 3}, "red triangle at 40,88 size 20x20"),
        ({**POLYGON, "sides": 6}, "red polygon with 6 sides at 40,88 size 20x20"),
        ({"kind": "canvas", "box": [-5, 0, 10, 10]}, "canvas at 0,5 size 10x10"),
        (LINE, "black line from 0,0 to 5,5"),
    ],
)  # fmt: skip
def test_lines(sent, line):
    assert [str(each) for each in read_drawings([sent])] == [line]


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({}, "drawings must be a list"),
        ([CIRCLE] * 61, "there may be 60 drawings, got 61"),
        ([[]], "a drawing must be a dict"),
        ([{**CIRCLE, "kind": "button"}], "a drawing must be one of circle, .*, got 'button'"),
        ([{**CIRCLE, "box": [1, 2, 3]}], "must be 4 numbers, got 3"),
        ([{**CIRCLE, "box": [1, 2, 3, float("nan")]}], "must be a finite number"),
        ([{**CIRCLE, "box": [1, 2, 3, 1e9]}], "must be from -1e"),
        ([{**CIRCLE, "id": "1" * 12}], "too long"),
        ([{**CIRCLE, "text": "x" * 101}], "too long"),
        ([{**CIRCLE, "text": 7}], "the text of a drawing must be a str"),
        ([{**CIRCLE, "fill": "red"}], "a colour must be a list"),
        ([{**CIRCLE, "fill": [1, 2]}], "a colour must be 3 numbers, got 2"),
        ([{**CIRCLE, "fill": [1, 2, 256]}], "a colour must be from"),
        ([{**LINE, "ends": [1]}], "a line must have ends of 4 numbers, got 1"),
        ([{**CIRCLE, "sides": 1e6}], "sides must be from"),
    ],
)
def test_what_a_server_may_not_send(sent, problem):
    with pytest.raises(ValueError, match=problem):
        read_drawings(sent)


def test_text_that_is_drawn_is_on_the_page_once_and_places_belong_to_elements():
    (ink,) = read_drawings([{**INK, "id": "4"}])
    page = [
        *(Element("", "text", "Ink"), Element("4", "text", "Ink"), Element("5", "text", "Ink")),
        *(Element("6", "button", "Go", ", disabled"), Element("", "text", "Else")),
    ]
    lines = [str(element) for element in with_drawings(page, [ink], {"6": (10, 10, 40.6, 20)})]
    assert lines == [
        "text 'Ink' [5]",
        "button 'Go' [6], disabled at 30,20 size 41x20",
        "text 'Else'",
        "red lettering 'Ink' [4] at 40,88 size 20x20",
    ]
    assert with_drawings(page, [], {}) == page


def test_an_element_without_a_name_is_one_line_with_its_drawing_and_others_stay_two():
    drawings = read_drawings([{**CIRCLE, "id": id_} for id_ in "13567"] + [{**INK, "id": "2"}])
    page = [
        *(Element("1", "element", "", guess="sun"), Element("2", "element", "", guess="ink")),
        *(Element("3", "button", "", guess="star"), Element("4", "element", "", guess="1 of 2")),
        Element("5", "element", "", guess="sun, row 1 column 12"),
        Element("6", "element", "", guess="row 2 column 1"),
        Element("7", "element", "", guess="1 of 2"),
    ]
    assert [str(element) for element in with_drawings(page, drawings, {})] == [
        "red circle (sun) [1] at 40,88 size 20x20",
        "red lettering 'Ink' [2] at 40,88 size 20x20",
        "button (star) [3]",
        "element (1 of 2) [4]",
        "red circle (sun) [5] at 40,88 size 20x20",
        "red circle [6] at 40,88 size 20x20",
        "red circle [7] at 40,88 size 20x20",
        "red circle [3] at 40,88 size 20x20",
    ]


def test_the_smallest_element_is_under_a_point():
    boxes = {"1": (0.0, 0.0, 100.0, 100.0), "2": (10.0, 10.0, 20.0, 20.0)}
    assert [element_under(boxes, *point) for point in ((15, 15), (30, 30), (31, 15), (101, 0))] == [
        *("2", "2", "1", ""),
    ]


def test_points_are_actions_where_something_is_drawn():
    assert page_actions((), ["text", "button"]) == ()
    assert page_actions((), ["text", "circle"]) == ("click_at", "drag")
    assert page_actions(("goto", "drag"), ["box"]) == ("goto", "drag", "click_at")
    plain, drawn = (
        ACTION.messages("Go.", page, (), "")[0]["content"]
        for page in ("text 'circle at 1,2'", "button 'Go' [1]\ncircle at 40,88 size 20x20")
    )
    assert plain == SYSTEM
    assert drawn == f"{SYSTEM}\nclick_at(40, 90)\ndrag(40, 90, 120, 90)"
    circle = Drawing("", "circle", "", box=(1.0, 2.0, 4.0, 4.0))
    assert list(possible_actions([circle, Element("7", "button", "Go")], "")) == [
        *("click_at(3, 4)", "click('7')"),
    ]


def test_points_are_parsed_strictly():
    extra = ("click_at", "drag")
    action = parse_action("drag(1, 2.5, 30, 0)", extra)
    assert action == Action("drag", (1, 2.5, 30, 0))
    assert (action.points, action.ids) == (((1.0, 2.5), (30.0, 0.0)), ())
    assert parse_action("scroll(0, -3)").points == ()
    wrong = ["click_at(-1, 2)", "click_at('1', 2)", "click_at(1)", "click_at(True, 2)"]
    wrong += ["click_at(1e9, 2)", "click_at(1, 1e999)", "drag(1, 2, 3)", "click_at(1+1, 2)"]
    for text in wrong:
        with pytest.raises(InvalidAction, match=re.escape(f"got: {text}")):
            parse_action(text, extra)
    with pytest.raises(InvalidAction, match="there is no action click_at; actions: click, "):
        parse_action("click_at(1, 2)")


def test_nobody_knows_what_a_click_at_a_point_does():
    assert all(may_send(parse_action(text, ("click_at", "drag")), "textbox")
               for text in ("click_at(1, 2)", "drag(1, 2, 3, 4)"))  # fmt: skip


def test_what_the_server_sends_is_within_the_limits_and_shows_no_secret():
    secrets = Secrets({"password": "hunter22"})
    texts = ["my HUNTER22", "hun", "ter22", "x" * 500]
    found = [{**CIRCLE, "kind": "text", "text": text} for text in texts] + [CIRCLE] * 70
    sent = drawn_metadata({"drawings": found, "more": 2}, secrets)
    assert sent["left_out"] == {"drawn": 16}
    read = read_drawings(sent["drawings"])
    assert len(read) == 60
    assert [each.name for each in read[:4]] == [
        *("my <password>", "<password>", "<password>", "x" * 100),
    ]
    assert drawn_metadata({}) == {}
