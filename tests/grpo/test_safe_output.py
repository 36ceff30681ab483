"""Foreign text on its way to a person: no control character gets through, all else stays."""

import io
import logging
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.cli import exit_code
from grpo.errors import ConfigError
from grpo.safe_output import (
    accept_any_character,
    code,
    markdown,
    one_line,
    printable,
    without_passwords,
)

ROOT = Path(__file__).resolve().parents[2]
ANY = st.text(st.characters(codec=None, categories=None))
HOSTILE = "\x1b[2J\x1b]0;title\x07 \x9b31m \r\x08 \u202egnp \u2066 \ud800 \u2028 \U000e0041 \x7f"


@given(ANY)
def test_no_control_character_comes_out(text):
    shown = printable(text)
    left = {c for c in shown if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"}
    unassigned = {c for c in left if unicodedata.category(c) in ("Cn", "Co")}  # have no effect
    assert left - unassigned <= {"\n", "\t", "\u200c", "\u200d"}
    shown.encode()  # no surrogate is left
    assert "\n" not in one_line(text)


@given(st.text(st.characters(exclude_categories=("C", "Zl", "Zp"))))
def test_text_without_control_characters_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\x08\x00\x7f", r"a\rb\x08\x00\x7f"),
        ("\u202egnp\u2066\u200f\ufeff", r"\u202egnp\u2066\u200f\ufeff"),
        ("\ud800 \udc80", r"\ud800 \udc80"),
        ("\U000e0041", r"\U000e0041"),
        ("één\n\t日本 👨\u200d👩 a\xa0b", "één\n\t日本 👨\u200d👩 a\xa0b"),
        (ValueError("\x07"), r"\x07"),
    ],
)
def test_escapes_are_visible(text, shown):
    assert printable(text) == shown


def test_one_line():
    assert one_line("a\nb  c\r\n\u2028d\n") == r"a b  c\r \u2028d"


@given(ANY)
def test_markdown_has_no_bare_markup(text):
    shown = markdown(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[<>|`*_\[]", re.sub(r"\\\\", "", shown))


@pytest.mark.parametrize(
    ("text", "shown"), [("a`b", "`` a`b ``"), ("plain", "`plain`"), ("``", "``` `` ```")]
)
def test_code_in_markdown(text, shown):
    assert code(text) == shown


def test_a_stream_that_lacks_a_character():
    stream = io.TextIOWrapper(file := io.BytesIO(), encoding="ascii")
    accept_any_character(stream)
    stream.write("▁é\ud800")
    stream.flush()
    assert file.getvalue() == rb"\u2581\xe9\ud800"
    accept_any_character(None)  # a program without a console
    accept_any_character(io.StringIO())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://user:secret@proxy:3128/ failed", "proxy http://***@proxy:3128/ failed"),
        ("'socks5://u:p@a' and 'x://:p@b'", "'socks5://***@a' and 'x://***@b'"),
        ("http://u:p@ss@a", "http://***@a"),
        ("http://a/b@c, mail@a, a://b", "http://a/b@c, mail@a, a://b"),
    ],
)
def test_passwords_in_addresses_are_hidden(text, shown):
    assert without_passwords(text) == shown


@pytest.mark.parametrize(("kind", "code"), [(ConfigError, 2), (OSError, 1)])
def test_errors_of_a_program(capsys, kind, code):
    def program():
        raise kind(f"no model at http://user:secret@a {HOSTILE}\nerror: another line")

    assert exit_code(program) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: no model at http://***@a {printable(HOSTILE)} error: another line"


PROGRAM = r"""
import logging, sys, warnings
from grpo.cli import exit_code

text = "\x1b[31m \u202e \ud800 ▁ http://user:secret@proxy"

def program():
    print("▁")
    warnings.warn(text + "\nand more")
    warnings.warn(text, RuntimeWarning)
    logging.getLogger("grpo").warning("said: %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("grpo").warning("failed", exc_info=True)
    raise ZeroDivisionError(text)

sys.exit(exit_code(program))
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_logs_warnings_and_tracebacks(encoding):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, capture_output=True, timeout=60,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 1
    out, err = (text.decode(encoding) for text in (done.stdout, done.stderr))
    assert out.strip() == ("▁" if encoding == "utf-8" else r"\u2581")
    assert printable(out + err) == out + err
    assert "\nwarning: " + r"\x1b[31m \u202e \ud800 " in "\n" + err
    assert " and more\n" in err  # in one line
    assert err.count("http://***@proxy") == 5
    assert "secret" not in err
    for part in ("RuntimeWarning: ", "said: ", "\nValueError: ", "\nZeroDivisionError: "):
        assert part + r"\x1b[31m \u202e \ud800 " in err, err


def test_a_users_own_logging_stays():
    handlers = logging.getLogger().handlers[:]
    assert exit_code(lambda: None) == 0
    assert logging.getLogger().handlers == handlers
