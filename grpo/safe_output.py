"""Foreign text on its way to a person: pages, completions, server errors, task and model names.

Whatever it holds, it is shown as text: it cannot command a terminal, reverse a line, forge a second
one, or become markup.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import traceback
import unicodedata
import warnings
from types import TracebackType
from typing import TextIO

SHOWN = {"\n", "\t", "\u200c", "\u200d"}
"""Controls that stay: line ends and tabs, and the joiners that words and emoji are spelled with."""

CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control and format characters, surrogates, and line separators."""


def printable(text: object) -> str:
    r"""Replace every control character by its escape, e.g. ESC by `\x1b`; all else stays.

    Escaped are the C0 and C1 controls, bidirectional overrides and other invisible format
    characters, lone surrogates, and Unicode's line separators. Newlines and tabs stay.
    """
    return "".join(map(_escape, str(text)))


def one_line(text: object) -> str:
    """Return `printable(text)` with its lines joined by spaces."""
    return " ".join(printable(text).splitlines())


def without_passwords(text: object) -> str:
    """Hide the user and password of every address in a message, e.g. of a proxy."""
    return re.sub(r"(?<=://)[^\s/?#'\"]*@", "***@", str(text))


def markdown(text: object) -> str:
    """Return a text that Markdown, and HTML in it, show as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&~$#!])", r"\\\1", one_line(text))


def code(text: object) -> str:
    """Return a text as code within a line of Markdown."""
    line = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def accept_any_character(stream: object) -> None:
    """Let a text stream write characters that its encoding lacks as escapes, e.g. in ASCII."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


class PrintableFormatter(logging.Formatter):
    """Formats a log record, its traceback included, as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        return printable(without_passwords(super().format(record)))


def protect_output() -> None:
    """Make what this process prints safe to show: output, logs, warnings, tracebacks.

    Logs that the program has set up itself stay as they are.
    """
    accept_any_character(sys.stdout)
    accept_any_character(sys.stderr)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PrintableFormatter())
    warnings.showwarning = _print_warning
    sys.excepthook = _print_traceback


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    print(printable(without_passwords("".join(lines))), end="", file=sys.stderr)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if category is UserWarning:  # for whoever runs the program: the line of code tells them nothing
        text = f"warning: {one_line(message)}\n"
    else:
        text = printable(warnings.formatwarning(message, category, filename, lineno, line))
    print(without_passwords(text), end="", file=file or sys.stderr)


def _escape(char: str) -> str:
    if char in SHOWN or unicodedata.category(char) not in CONTROLS:
        return char
    return char.encode("unicode_escape").decode()
