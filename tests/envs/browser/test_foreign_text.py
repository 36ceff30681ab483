"""Foreign text made safe: what `repr` wrote is read back, and everything else is read somehow."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.browser.foreign_text import brief, clean, one_line, unquote

texts = st.text() | st.text("'\"\\nxuU0123dDaf\0\x1b\ud800\udc00\n\r\té")


@given(texts)
def test_unquote_reads_what_repr_writes(text):
    assert unquote(repr(text)) == clean(text)


@given(texts)
def test_any_literal_becomes_text_that_can_be_sent(text):
    unquote(f"'{text}'").encode()
    json.dumps(unquote(f"'{text}'"), ensure_ascii=False).encode()


def test_unknown_escapes_stay():
    assert unquote(r"'\d \N{DASH} \x4 \u12 \0'") == r"\d \N{DASH} \x4 \u12 \0"
    assert unquote(r"'\U00110000'") == "\ufffd"
    assert unquote(r"'a\ud800b\x00c'") == "a\ufffdb\ufffdc"


def test_clean():
    assert clean("a\tb\nc\r\nd é \u00a0\u2028") == "a\tb\nc\nd é \u00a0\u2028"
    assert clean("\0\x1b[31m\r\x7f\x85\ud800") == "\ufffd\ufffd[31m" + 4 * "\ufffd"


def test_one_line():
    assert one_line(" a\n\tb\x1b[0m\u202e ") == "a b\ufffd[0m\ufffd"
    assert one_line("a" * 10**6, 5) == "aaaaa..."
    assert one_line("a" * 5, 5) == "aaaaa"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "None"),
        (float("nan"), "nan"),
        (10**400, "1" + "0" * 99),
        ("a" * 10**6, repr("a" * 80)),
        ([[]] * 10**6, "a list of length 1000000"),
        ({"a": 1}, "a dict of length 1"),
    ],
    ids=str,
)
def test_brief(value, words):
    assert brief(value) == words
