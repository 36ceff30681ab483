"""The grammar of the action format against the parser that decides."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.browser.actions import (
    ACTIONS,
    EXTRA_ACTIONS,
    MAX_LENGTH,
    InvalidAction,
    format_action,
    parse_action,
    usage,
)
from envs.browser.grammar import MAX_TEXT, action_gbnf, action_regex
from envs.browser.prompts import EXAMPLES, FIELD_EXAMPLES

EXTRA = tuple(EXTRA_ACTIONS)
REGEX = re.compile(action_regex(EXTRA))
PIECES = ["click", "fill", "goto", "scroll", "noop", "(", ")", ", ", ",", "'", '"', "\\", " ", "12"]
PIECES += ["-", "0", ".5", "9" * 13, "100000", "1e9", "\n", "\x00", "é", "\\x41", "id=", "f'", "''"]
TEXTS = [
    "",
    "é\U0001f600",
    "it's",
    'say "hi"',
    "a\\nb",
    "a\nb",
    "\\x41",
    "\\\\",
    "]",
    "\x7f",
    "x" * 200,
]


@settings(max_examples=400)
@given(st.from_regex(REGEX, fullmatch=True))
def test_what_the_regex_makes_is_an_action(text: str) -> None:
    assert parse_action(text, EXTRA).name in ACTIONS | EXTRA_ACTIONS


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_what_the_regex_takes_is_an_action(text: str) -> None:
    """Pieces of actions in any order: most are none, and what matches still is one."""
    if REGEX.fullmatch(text):
        parse_action(text, EXTRA)


@settings(max_examples=300)
@given(st.characters(codec="utf-8"), st.sampled_from("'\""))
def test_any_character_in_a_text(character: str, quote: str) -> None:
    text = f"fill('7', {quote}a{character}b{quote})"
    if REGEX.fullmatch(text):
        assert parse_action(text).args == ("7", f"a{character}b")
    else:
        assert character in (quote, "\\") or ord(character) < 32 or character == "\x7f"


@pytest.mark.parametrize("name", [*ACTIONS, *EXTRA_ACTIONS])
def test_every_action_is_in_it(name: str) -> None:
    text = usage(name)
    assert REGEX.fullmatch(text)
    assert parse_action(format_action(parse_action(text, EXTRA)), EXTRA)
    assert bool(re.fullmatch(action_regex(), text)) == (name in ACTIONS)
    assert (f'"{name}(' in action_gbnf()) == (name in ACTIONS)
    assert f'"{name}(' in action_gbnf(EXTRA)


@pytest.mark.parametrize("example", EXAMPLES + FIELD_EXAMPLES)
def test_what_prompts_show_is_in_it(example: tuple[str, str, tuple[str, ...], str]) -> None:
    assert all(REGEX.fullmatch(text) for text in (*example[2], example[3]))


@pytest.mark.parametrize(
    "text",
    ["click('1', )", 'click("12")', "noop( )", "fill('1','a')", "fill('1', '\\x41')", "(noop())"],
)
def test_other_spellings_are_left_to_the_parser(text: str) -> None:
    assert not REGEX.fullmatch(text)


def test_the_longest_action_is_not_too_long() -> None:
    longest = max(2 * MAX_TEXT + len(usage(name)) for name in ACTIONS)
    assert longest + 12 < MAX_LENGTH
    with pytest.raises(InvalidAction):
        parse_action(f"fill('1', '{'x' * MAX_LENGTH}')")
    assert REGEX.fullmatch(f"fill('1', '{'x' * MAX_TEXT}')")
    assert not REGEX.fullmatch(f"fill('1', '{'x' * (MAX_TEXT + 1)}')")


def test_both_grammars_are_one_language() -> None:
    """The character classes and bounds of the rules, which GBNF and regular expressions share."""
    classes = r"\[(?:\\.|[^\]\\])+\](?:\{[0-9,]+\})?"
    assert set(re.findall(classes, action_gbnf())) == set(re.findall(classes, action_regex()))


@pytest.mark.vllm
def test_xgrammar_reads_both() -> None:
    """The parser of grammars that vLLM comes with."""
    xgrammar = pytest.importorskip("xgrammar")
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo(["a"]))
    grammars = [
        compiler.compile_grammar(xgrammar.Grammar.from_ebnf(action_gbnf(EXTRA))),
        compiler.compile_grammar(xgrammar.Grammar.from_regex(action_regex(EXTRA))),
    ]

    def takes(grammar: object, text: str) -> bool:
        matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
        return matcher.accept_string(text) and matcher.is_terminated()

    texts = [usage(name) for name in (*ACTIONS, *EXTRA)]
    texts += [f"fill('1', {quote}{text}{quote})" for quote in "'\"" for text in TEXTS]
    texts += ["scroll(-0.125, 99999)", "scroll(100000, 0)", "scroll(1e3, 0)", "click('a b')"]
    for text in texts:
        expected = bool(REGEX.fullmatch(text))
        assert [takes(grammar, text) for grammar in grammars] == [expected] * 2, text
