"""What reports amount to, without a browser."""

import json

import pytest

from envs.browser.record.events import Actions, Event, Ignored, Step, Target, read_report

NAME, CITY, SEND = (Target((), (0, n), "input", "") for n in range(3))


def typed(text, target=NAME):
    return Event("input", (target,), text)


def clicked(target, count=1, **options):
    return Event("click", (target,), count=count, **options)


def steps(*events):
    """Return the steps of all events, and of time that passes after them."""
    actions = Actions()
    return [step for event in events for step in actions.add(event)] + list(actions.flush())


def fill(text, target=NAME):
    return Step("fill", (target,), (text,))


def click(target):
    return Step("click", (target,))


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([typed("A"), typed("An"), typed("Ann")], [fill("Ann")]),
        ([clicked(NAME, field=True), typed("Ann")], [fill("Ann")]),
        ([clicked(NAME, field=True), clicked(SEND)], [click(NAME), click(SEND)]),
        ([typed("Ann"), Event("leave"), typed("Bern", CITY)], [fill("Ann"), fill("Bern", CITY)]),
        ([typed("Ann"), typed("Bern", CITY)], [fill("Ann"), fill("Bern", CITY)]),
        ([typed("A"), typed("")], [Step("clear", (NAME,))]),
        (
            [typed("tea"), Event("key", (NAME,), "Enter")],
            [fill("tea"), Step("press", (NAME,), ("Enter",))],
        ),
        ([clicked(SEND), clicked(SEND, 2)], [Step("dblclick", (SEND,))]),
        (
            [clicked(SEND), clicked(SEND, 2), clicked(SEND, 3)],
            [Step("dblclick", (SEND,)), click(SEND)],
        ),
        ([clicked(SEND), clicked(SEND)], [click(SEND), click(SEND)]),
        ([clicked(SEND), clicked(CITY, 2)], [click(SEND), click(CITY)]),
        ([clicked(NAME, field=True), clicked(NAME, 2, field=True), typed("B")], [fill("B")]),
        (  # a triple click selects the text
            [*(clicked(NAME, count, field=True) for count in (1, 2, 3)), typed("B")],
            [fill("B")],
        ),
        ([Event("scroll", (), amounts=(0, 40))], [Step("scroll", (), (0, 40))]),
        ([Event("drag", (NAME, SEND))], [Step("drag_and_drop", (NAME, SEND))]),
        ([typed("A"), Event("ignored", value="so")], [fill("A"), Ignored("so")]),
        ([Event("dialog", value="Ann", accepted=True)], [Step("dialog", (), (1, "Ann"))]),
    ],
)
def test_events_become_steps(events, expected):
    assert steps(*events) == expected


def test_only_a_click_outside_of_fields_waits_for_time_to_pass():
    actions = Actions()
    assert list(actions.add(clicked(SEND))) == []
    assert actions.waits
    assert not actions.typing
    assert list(actions.flush()) == [click(SEND)]
    assert list(actions.add(typed("A"))) == []
    assert actions.typing
    assert not actions.waits


def test_a_report_is_read_with_its_frame():
    element = {"path": [0, "shadow", 2], "tag": "button", "text": "Go"}
    report = {"kind": "click", "targets": [element], "count": 2, "plain": True, "field": False}
    target = Target((1,), (0, "shadow", 2), "button", "Go")
    assert read_report(json.dumps(report), (1,)) == Event("click", (target,), count=2, plain=True)


ELEMENT = {"path": [0], "tag": "p", "text": ""}


@pytest.mark.parametrize(
    "report",
    [
        "",
        "[]",
        "[" * 100_000,
        '"click"',
        "null",
        *map(
            json.dumps,
            [
                {"kind": "explode"},
                {"kind": ["click"]},
                {"kind": "click"},
                {"kind": "click", "targets": 7},
                {"kind": "click", "targets": [{"path": [0]}]},
                {"kind": "click", "targets": [ELEMENT | {"path": ["0); alert(1"]}]},
                {"kind": "click", "targets": [ELEMENT | {"path": [0] * 2000}]},
                {"kind": "click", "targets": [ELEMENT | {"text": 3}]},
                {"kind": "input", "targets": [ELEMENT], "value": {"a": 1}},
                {"kind": "drag", "targets": [ELEMENT]},
                {"kind": "scroll", "amounts": ["left", 0]},
                {"kind": "scroll", "amounts": [1e400, 0]},
                {"kind": "input", "targets": [ELEMENT], "value": "x" * 200_000},
            ],
        ),
    ],
)
def test_what_the_page_may_have_made_up_is_refused_in_one_line(report):
    with pytest.raises(ValueError, match=r"^expected a report, got .{0,100}$"):
        read_report(report, ())
