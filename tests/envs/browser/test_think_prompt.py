"""The answer format of a thought and an action: what it reads, and that it reads one only."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.browser.actions import (
    ACTIONS,
    EXTRA_ACTIONS,
    Action,
    InvalidAction,
    format_action,
    parse_action,
    usage,
)
from envs.browser.prompts import ACTION
from envs.browser.think_prompt import MAX_THOUGHT, ThinkPrompt

EXTRA = tuple(EXTRA_ACTIONS)
THINK = ThinkPrompt()
REGEX = re.compile(THINK.grammars(EXTRA)["actions.regex"])
CALLS = [usage(name) for name in (*ACTIONS, *EXTRA)]

texts = st.text(st.characters(codec="utf-8"), max_size=20)
actions = st.one_of(
    st.builds(lambda name: parse_action(usage(name), EXTRA), st.sampled_from([*ACTIONS, *EXTRA])),
    st.builds(lambda text: Action("fill", ("7", text)), texts),
)
pieces = st.one_of(
    st.sampled_from([*CALLS, "\n", "\r", "\u2028", "; ", " ", "# ", "(click)('3')", "click ('3')"]),
    st.sampled_from(["Next: button 'OK (2)'.", "\ufffd", "<|im_end|>", "ｃｌｉｃｋ('3')", "u'3'"]),
    texts,
)


def read(text: str) -> Action | None:
    try:
        return THINK.parse(text, EXTRA)
    except InvalidAction as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 300
    return None


@settings(max_examples=500)
@given(st.lists(pieces, max_size=8).map("".join))
def test_no_text_with_two_actions_is_read(text: str) -> None:
    """What is read has one line with one action, the last one, and none above it."""
    action = read(text)
    if action is None:
        return
    thought, line = text.strip().split("\n")
    assert parse_action(line, EXTRA) == action
    for call in CALLS:
        assert call not in thought
    with pytest.raises(InvalidAction):
        parse_action(thought, EXTRA)
    assert "\ufffd" not in thought  # nor a control token
    assert THINK.parse(THINK.write(action, THINK.thought(text)), EXTRA) == action


@settings(max_examples=300)
@given(actions, actions, st.sampled_from(["\n", " ", "; ", "\n\n", "\r\n", "\u2028", ""]))
def test_two_actions_are_never_a_completion(first: Action, second: Action, between: str) -> None:
    both = f"{format_action(first)}{between}{format_action(second)}"
    assert read(both) is None
    assert read(f"So.\n{both}") is None
    assert read(f"{both}\n{format_action(first)}") is None
    assert read(f"I do {format_action(first)} now.\n{format_action(second)}") is None


@settings(max_examples=300)
@given(actions, st.one_of(st.just(""), texts))
def test_what_is_written_is_read(action: Action, thought: str) -> None:
    try:
        text = THINK.write(action, thought)
    except ValueError:
        assert thought.strip()  # refused, and not changed
        return
    assert THINK.parse(text, EXTRA) == action
    assert THINK.thought(text) == (thought.strip() or f"Next: {action.name}.")


@settings(max_examples=300)
@given(texts, actions)
def test_a_control_token_or_the_text_of_a_page_is_no_action(page: str, action: Action) -> None:
    """`ChatTemplate.read` begins a text with U+FFFD where a control token was sampled."""
    assert read(f"\ufffdSo.\n{format_action(action)}") is None
    assert read(page) is None or "\n" in page
    assert read(f"So.\nbutton '{page}' [7]") is None
    assert read(f"So.\n{page}{format_action(action)} [7]") is None


@settings(max_examples=300)
@given(st.from_regex(REGEX, fullmatch=True))
def test_what_the_grammar_makes_is_a_completion(text: str) -> None:
    assert THINK.parse(text, EXTRA)


def test_both_grammars_are_one_language() -> None:
    classes = r"\[(?:\\.|[^\]\\])+\](?:\{[0-9,]+\})?"
    grammars = THINK.grammars(EXTRA)
    gbnf, regex = grammars["actions.gbnf"], grammars["actions.regex"]
    assert set(re.findall(classes, gbnf)) == set(re.findall(classes, regex))
    names = [line.split(" ::= ")[0] for line in gbnf.splitlines()]
    assert names == ["root", "thought", "action", "id", "text", "number", "pixel"]
    for *_, completion in (*THINK.examples, *THINK.field_examples):
        assert REGEX.fullmatch(completion)
    assert not REGEX.fullmatch(f"{'x' * (MAX_THOUGHT + 1)}\nnoop()")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("click('7')", "expected two lines, a thought and below it one action such as click('12')"),
        ("Because.\n\nclick('7')", "expected two lines"),
        ("Because.\nclick('7')\nclick('8')", "expected two lines"),
        ("click('7')\nclick('8')", "expected a thought without an action above the action"),
        ("ｃｌｉｃｋ('7')\nclick('8')", "expected a thought without an action above the action"),
        ("(click)('7')\nclick('8')", "expected a thought without an action above the action"),
        ("(7), unclick ('7')\nclick('8')", "expected a thought without an action above"),
        (f"{'x' * 301}\nclick('8')", "expected a thought of 1 to 300 characters"),
        ("a\tb\nclick('8')", "expected a thought of 1 to 300 characters without control char"),
        ("Because.\nI click.", "expected one action such as click('12'), got: I click."),
        ("Because.\ntap('7')", "there is no action tap; actions: click"),
    ],
)
def test_what_was_expected_and_what_came(text: str, message: str) -> None:
    with pytest.raises(InvalidAction, match=re.escape(message)):
        THINK.parse(text)


def test_white_space_around_the_lines() -> None:
    assert THINK.parse(" \n Because (really). \r\n  click('7') \n") == Action("click", ("7",))


def test_the_chat_teaches_the_format_and_its_history_has_actions_only() -> None:
    chat = THINK.messages("Go.", "textbox [57]", ["click('7')"], "no such thing", ("goto",))
    assert "two lines" in chat[0]["content"]
    assert chat[0]["content"].endswith("noop()\ngoto('text')")
    answers = [each["content"] for each in chat if each["role"] == "assistant"]
    assert len(answers) == 4
    assert all(THINK.parse(answer) and THINK.thought(answer) for answer in answers)
    assert chat[-1] == ACTION.messages("Go.", "textbox [57]", ["click('7')"], "no such thing")[-1]
    assert THINK.around(chat[-1]["content"], ("goto",)) == chat
