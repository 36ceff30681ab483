import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.browser.actions import ACTIONS, Action, InvalidAction, format_action, parse_action

KINDS = {
    "id": st.from_regex(r"[A-Za-z0-9]{1,12}", fullmatch=True),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    "number": st.integers(-1000, 1000) | st.floats(-1000, 1000),
}
actions = st.sampled_from(sorted(ACTIONS)).flatmap(
    lambda name: st.tuples(*(KINDS[kind] for kind in ACTIONS[name])).map(
        lambda args: Action(name, args)
    )
)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("click('13')", Action("click", ("13",))),
        ('  click("a12")\n', Action("click", ("a12",))),
        ("fill('7', 'it\\'s (not) \\n')", Action("fill", ("7", "it's (not) \n"))),
        ("scroll(0, -200.5)", Action("scroll", (0, -200.5))),
        ("drag_and_drop('1','2')", Action("drag_and_drop", ("1", "2"))),
        ("noop()", Action("noop")),
    ],
)
def test_one_action(text, action):
    assert parse_action(text) == action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "click",
        "I click('13')",
        "click('13') now",
        "click('13') # the button",
        "(click('13'))",
        "```\nclick('13')\n```",
        "click('13')\nclick('14')",
        "click('13'); click('14')",
        "click('13'), click('14')",
        "click(13)",
        "click()",
        "click('13', 'left')",
        "click(bid='13')",
        "click('13', button='left')",
        "click(*'1')",
        "click(noop())",
        "click(f'{1}')",
        "click(b'13')",
        "click('1' + '3')",
        "click('the button')",
        "page.click('13')",
        "exec('1')",
        "__import__('os')",
        "fill('7', '\\ud800')",
        "\ud800",
        "scroll(0, True)",
        "scroll(0, 1e999)",
        "scroll(0, 1j)",
        "scroll(0, -'1')",
        "click(" * 500 + ")" * 500,
        "(" * 1500,
        "click('13')" + " " * 2000,
        "\0",
        "a" * 1_000_000,
    ],
)
def test_anything_else_is_refused_with_one_short_line(text):
    with pytest.raises(InvalidAction) as error:
        parse_action(text)
    message = str(error.value)
    assert len(message) < 250
    assert message.isprintable()


def test_the_error_names_what_was_expected():
    with pytest.raises(
        InvalidAction, match=r"^expected one action such as click\('12'\), got: Hi$"
    ):
        parse_action("Hi")
    with pytest.raises(InvalidAction, match=r"^expected fill\('12', 'text'\), got: fill\('7'\)$"):
        parse_action("fill('7')")
    with pytest.raises(InvalidAction, match=r"^there is no action tap; actions: click, "):
        parse_action("tap('7')")


@given(actions)
def test_round_trip(action):
    assert parse_action(format_action(action)) == action


@given(
    st.text() | st.text("click('1)\",\n ={}[]*") | actions.map(format_action).map(lambda t: t[1:])
)
def test_no_other_exception(text):
    try:
        action = parse_action(text)
    except InvalidAction:
        return
    assert parse_action(format_action(action)) == action


def test_ids():
    action = Action("fill", ("7", "7"))
    assert action.ids == ("7",)
    assert action.with_ids({"7": "21"}) == Action("fill", ("21", "7"))
