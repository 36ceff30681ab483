"""Values that a page may have and nobody else: neither the model, nor a log, picture or file.

The model writes a placeholder such as `<password>`. The page gets the value, and whatever the page
shows of it is the placeholder again.
"""

from __future__ import annotations

import html
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from envs.browser.actions import MAX_LENGTH, Action
from envs.browser.foreign_text import unquote
from envs.browser.page_text import QUOTED

MIN_LENGTH = 3
"""Shorter values are on every page."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_IN_TREE = re.compile(rf"{QUOTED}|(?<=value=)[^,'\"\s]++")


class Secrets:
    """Secret values by their names.

    Args:
        values: the values.

    Raises:
        ValueError: a name or a value cannot be used; the message does not contain the value.
    """

    def __init__(self, values: Mapping[str, str]):
        for name, value in values.items():
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"a secret's name must be letters, digits, '_' or '-', got {name!r:.60}"
                )
            if not MIN_LENGTH <= len(value) <= MAX_LENGTH or value != value.strip():
                raise ValueError(
                    f"the value of secret {name!r} must have {MIN_LENGTH} to {MAX_LENGTH} "
                    "characters, without white space around them"
                )
        self._values = {f"<{name}>": value for name, value in values.items()}
        longest_first = sorted(self._values.items(), key=lambda item: -len(item[1]))
        self._names = [name for name, _ in longest_first]
        forms = "|".join(f"({_any_form(value)})" for _, value in longest_first)
        self._pattern = re.compile(forms, re.IGNORECASE)

    def __bool__(self) -> bool:
        return bool(self._values)

    def revealed(self, action: Action) -> Action:
        """Return an action for the page: a `fill` with values in place of their placeholders."""
        if action.name != "fill" or not self._values:
            return action
        bid, text = map(str, action.args)
        placeholders = "|".join(map(re.escape, self._values))
        return Action("fill", (bid, re.sub(placeholders, lambda m: self._values[m[0]], text)))

    def hide(self, text: str) -> str:
        """Return a text with placeholders in place of the values, in upper or lower case."""
        return self._pattern.sub(self._placeholder, text) if self._values else text

    def hide_in_tree(self, axtree: str) -> str:
        """Do the same in the names and values of an accessibility tree; its ids stay.

        A value may be split: what shows a part of it becomes the placeholder.
        """
        if not self._values:
            return axtree
        found = list(_IN_TREE.finditer(axtree))
        texts = [unquote(m[0]) if m[0][0] in "'\"" else m[0] for m in found]
        parts = self.parts(texts)
        shown, end = [], 0
        for i, (match, text) in enumerate(zip(found, texts, strict=True)):
            hidden = parts.get(i) or self.hide(text)
            shown += [axtree[end : match.start()], match[0] if hidden == text else repr(hidden)]
            end = match.end()
        return "".join([*shown, axtree[end:]])

    def holds(self, text: str) -> bool:
        """Return True if a text contains a value."""
        return bool(self._values) and self._pattern.search(text) is not None

    def parts(self, texts: Sequence[str]) -> dict[int, str]:
        """Return the texts of a list that hold a part of a split value: placeholders by index."""
        solid = ["".join(text.split()) for text in texts]
        starts = list(accumulate(map(len, solid), initial=0))
        found: dict[int, str] = {}
        for match in self._pattern.finditer("".join(solid)):
            first = bisect_right(starts, match.start()) - 1
            last = bisect_left(starts, match.end()) - 1
            if first < last:
                parts = (i for i in range(first, last + 1) if solid[i])
                found |= dict.fromkeys(parts, self._placeholder(match))
        return found

    def _placeholder(self, match: re.Match[str]) -> str:
        return self._names[(match.lastindex or 0) - 1]


def _any_form(value: str) -> str:
    """Return a regular expression of a value as pages, addresses, programs and logs write it."""
    return "".join(map(_any_form_of_char, " ".join(value.split())))


def _any_form_of_char(char: str) -> str:
    encoded = "".join(f"%{byte:02x}" for byte in char.encode())
    if char == " ":
        return rf"(?:\s+|\+|{encoded})?"
    forms = {char, encoded, html.escape(char), json.dumps(char)[1:-1], ascii(char)[1:-1]}
    forms |= {f"\\{char}"} if char in "'\"" else set()
    longest_first = sorted(forms, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, longest_first))})"


NO_SECRETS = Secrets({})
