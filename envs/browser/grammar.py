"""The action format as a grammar, for servers that constrain what a model says.

Made from the tables of `envs.browser.actions`. Every text of the grammar is an action there. Not
the other way round: the grammar has one spelling of what `parse_action` reads in several. Ids are
in single quotes, arguments are separated by a comma and one space, texts have at most `MAX_TEXT`
characters and the escapes in `_ESCAPED` alone, numbers are below `MAX_PIXELS` and have up to
three decimals.
"""

from __future__ import annotations

from collections.abc import Collection

from envs.browser.actions import ACTIONS, EXTRA_ACTIONS, MAX_PIXELS

MAX_TEXT = 200
"""Characters of a text; each escape counts as one."""

_ESCAPED = r"""\\'"nrt"""
"""What may follow a backslash, as a character class: backslash, quotes, line feed and so on."""

_PLAIN = r"\\\x00-\x1f\x7f"
"""What a text cannot contain as it is, beside its own quote: backslash and control characters."""


_DIGITS = len(str(MAX_PIXELS)) - 1
"""Every number of so many digits is below the bound."""


def action_regex(extra: Collection[str] = ()) -> str:
    """Return a regular expression whose full matches are actions, e.g. for vLLM.

    Args:
        extra: names of `EXTRA_ACTIONS` that are allowed.
    """
    kinds = {
        "id": "'[A-Za-z0-9]{1,12}'",
        "text": "(" + "|".join(_text_regex(quote) for quote in "'\"") + ")",
        "number": rf"-?(0|[1-9][0-9]{{0,{_DIGITS - 1}}})(\.[0-9]{{1,3}})?",
        "pixel": rf"(0|[1-9][0-9]{{0,{_DIGITS - 1}}})(\.[0-9]{{1,3}})?",
    }
    calls = (
        rf"{name}\({', '.join(kinds[kind] for kind in arguments)}\)"
        for name, arguments in _actions(extra).items()
    )
    return f"({'|'.join(calls)})"


def action_gbnf(extra: Collection[str] = ()) -> str:
    """Return the same language as a grammar of llama.cpp (GBNF).

    Args:
        extra: names of `EXTRA_ACTIONS` that are allowed.
    """
    calls = []
    for name, arguments in _actions(extra).items():
        middle = ' ", " '.join(arguments)
        calls.append(f'"{name}(" {middle} ")"' if arguments else f'"{name}()"')
    rules = {
        "root": " | ".join(calls),
        "id": '"\'" [A-Za-z0-9]{1,12} "\'"',
        "text": " | ".join(_text_gbnf(quote) for quote in ("'", '"')),
        "number": '"-"? pixel',
        "pixel": f'("0" | [1-9] [0-9]{{0,{_DIGITS - 1}}}) ("." [0-9]{{1,3}})?',
    }
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


def _actions(extra: Collection[str]) -> dict[str, tuple[str, ...]]:
    return ACTIONS | {name: EXTRA_ACTIONS[name] for name in extra}


def _text_regex(quote: str) -> str:
    return rf"{quote}([^{quote}{_PLAIN}]|\\[{_ESCAPED}]){{0,{MAX_TEXT}}}{quote}"


def _text_gbnf(quote: str) -> str:
    literal = '"\\""' if quote == '"' else f'"{quote}"'
    return rf'{literal} ([^{quote}{_PLAIN}] | "\\" [{_ESCAPED}]){{0,{MAX_TEXT}}} {literal}'
