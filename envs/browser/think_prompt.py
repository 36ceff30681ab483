"""The answer format of a line of thought before the action."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from envs.browser.actions import (
    ACTIONS,
    EXTRA_ACTIONS,
    Action,
    InvalidAction,
    format_action,
    parse_action,
)
from envs.browser.foreign_text import brief
from envs.browser.grammar import action_gbnf, action_regex
from envs.browser.prompts import EXAMPLES, FIELD_EXAMPLES, SYSTEM, Example, Prompt

MAX_THOUGHT = 300
"""Maximum length of a thought in characters."""

_THOUGHTS = ("The button 'Continue' goes on.", "The link 'Settings' opens the settings.")
_FIELD_THOUGHTS = ("The field is still empty.", "The field has the text, so 'Go' searches for it.")

_NO_THOUGHT = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd"
"""What is not in a thought, as a character class: control characters, ends of lines, U+FFFD."""

_THOUGHT = re.compile(rf"[^{_NO_THOUGHT}]{{1,{MAX_THOUGHT}}}")
_CALL = re.compile(rf"(?:{'|'.join(ACTIONS | EXTRA_ACTIONS)})\s*\(")


def _with_thoughts(examples: Sequence[Example], thoughts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(
        (goal, page, done, f"{thought}\n{action}")
        for (goal, page, done, action), thought in zip(examples, thoughts, strict=True)
    )


class ThinkPrompt(Prompt):
    """One line of thought, and one action on the next line.

    A thought has 1 to `MAX_THOUGHT` characters and no call of an action in it, so that a completion
    never names two. U+FFFD is not one of its characters: a completion with a control token in it
    begins with that.
    """

    system = SYSTEM.replace(
        "Answer with exactly one action and nothing else:",
        "Answer with two lines: one short sentence that says why, then exactly one action:",
    )
    examples = _with_thoughts(EXAMPLES, _THOUGHTS)
    field_examples = _with_thoughts(FIELD_EXAMPLES, _FIELD_THOUGHTS)

    def parse(self, text: str, extra: Collection[str] = ()) -> Action:
        """Read a completion of exactly two lines; white space around each is ignored."""
        lines = text.strip().split("\n")
        if len(lines) != 2:
            raise InvalidAction(
                "expected two lines, a thought and below it one action such as click('12'), got: "
                + brief(text)
            )
        if reason := _why_no_thought(lines[0].strip()):
            raise InvalidAction(reason)
        return parse_action(lines[1], extra)

    def write(self, action: Action, thought: str = "") -> str:
        """Write the thought, or else the action's name, and the action below it."""
        thought = thought.strip() or f"Next: {action.name}."
        if reason := _why_no_thought(thought):
            raise ValueError(reason)
        return f"{thought}\n{format_action(action)}"

    def thought(self, text: str) -> str:
        """Return the first line."""
        return text.strip().partition("\n")[0].strip()

    def grammars(self, extra: Collection[str] = ()) -> dict[str, str]:
        """Return grammars of completions whose thoughts begin in ASCII and have no parentheses."""
        first, rest = r"[!-'*-~]", rf"[^(){_NO_THOUGHT}]{{0,{MAX_THOUGHT - 1}}}"
        rules = action_gbnf(extra).replace("root ::=", "action ::=", 1)
        return {
            "actions.gbnf": (f'root ::= thought "\\n" action\nthought ::= {first} {rest}\n{rules}'),
            "actions.regex": rf"{first}{rest}\n{action_regex(extra)}",
        }


def _why_no_thought(text: str) -> str:
    """Return why a line is not a thought; "" if it is one."""
    if not _THOUGHT.fullmatch(text):
        return (
            f"expected a thought of 1 to {MAX_THOUGHT} characters without control characters, got: "
            + brief(text)
        )
    # Python reads full-width letters as their ordinary ones, and so does `parse_action`.
    if _CALL.search(unicodedata.normalize("NFKC", text)) or _is_action(text):
        return f"expected a thought without an action above the action, got: {brief(text)}"
    return ""


def _is_action(text: str) -> bool:
    try:
        return bool(parse_action(text, EXTRA_ACTIONS))
    except InvalidAction:
        return False
