"""Text from a server or a page, made safe to store, encode and print."""

from __future__ import annotations

import re
from typing import Any

from envs.browser.limits import MAX_ERROR

REPLACEMENT = "\ufffd"

# Control characters except tab and newline, and surrogates, which have no UTF-8.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|([nrt'\"\\]))")
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


def clean(text: str) -> str:
    """Replace control characters and lone surrogates by U+FFFD; tabs and newlines stay."""
    return _UNSAFE.sub(REPLACEMENT, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int = MAX_ERROR) -> str:
    """Return a text as one printable line, cut after `limit` characters."""
    line = " ".join(text[: 4 * limit].split())
    line = "".join(c if c.isprintable() else REPLACEMENT for c in line)
    return line if len(line) <= limit else line[:limit] + "..."


def brief(value: Any) -> str:
    """Describe a value for an error: a scalar as itself, anything larger by its type and length."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__} of length {len(value)}"
    return repr(value[:80] if isinstance(value, str) else value)[:100]


def unquote(literal: str) -> str:
    """Return the text of a Python string literal as `repr` writes it, cleaned.

    It takes linear time and accepts everything: an escape that `repr` never writes stays as it is.

    Args:
        literal: the text with the quotes around it.
    """
    return clean(_ESCAPE.sub(_unescape, literal[1:-1]))


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    if code is None:
        return _LETTERS.get(match[4], match[4])
    number = int(code, 16)
    return chr(number) if number < 0x110000 else REPLACEMENT
