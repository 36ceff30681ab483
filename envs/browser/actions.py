"""The actions of a browser: one strict grammar, used by the client and by the server.

A model's text is parsed, never evaluated: the result is a name from `ACTIONS` with plain
strings and numbers, so no text can reach an interpreter.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from envs.browser.drawings import DRAWN_ROLES, Drawing
from envs.browser.limits import MAX_ACTIONS
from envs.browser.page_text import TEXT_ROLES, Element

ACTIONS: dict[str, tuple[str, ...]] = {
    "click": ("id",),
    "dblclick": ("id",),
    "hover": ("id",),
    "focus": ("id",),
    "clear": ("id",),
    "check": ("id",),
    "uncheck": ("id",),
    "fill": ("id", "text"),
    "select_option": ("id", "text"),
    "press": ("id", "text"),
    "drag_and_drop": ("id", "id"),
    "scroll": ("number", "number"),
    "noop": (),
}
"""Every action with the kinds of its arguments: an element's id, a text, or pixels to scroll by."""

SITE_ACTIONS: dict[str, tuple[str, ...]] = {
    "goto": ("text",),
    "go_back": (),
    "answer": ("text",),
}
"""Actions of those tasks alone that allow them."""

POINT_ACTIONS: dict[str, tuple[str, ...]] = {
    "click_at": ("pixel", "pixel"),
    "drag": ("pixel", "pixel", "pixel", "pixel"),
}
"""Actions on points of the window, (x, y) from its top left corner: on pages with drawings, and of
those tasks that allow them."""

EXTRA_ACTIONS = SITE_ACTIONS | POINT_ACTIONS
"""Actions that only some tasks or pages have."""

_KINDS = ACTIONS | EXTRA_ACTIONS

MAX_LENGTH = 2_000
"""Maximum length of an action in characters."""

MAX_PIXELS = 100_000
"""Maximum absolute value of a number."""

EXAMPLE_POINTS = ("40", "90", "120", "90")
"""x and y of one point and another, for the example of an action on points."""

_ID = re.compile(r"[A-Za-z0-9]{1,12}")


class InvalidAction(ValueError):
    """The text is not exactly one action; the message says in one line what was expected."""


@dataclass(frozen=True)
class Action:
    """One call such as `fill('7', 'Ann')`: `Action("fill", ("7", "Ann"))`."""

    name: str
    args: tuple[str | int | float, ...] = ()

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """Points among the arguments, (x, y) in pixels of the window."""
        numbers = [float(arg) for arg in self.args] if self.name in POINT_ACTIONS else []
        return tuple(zip(numbers[::2], numbers[1::2], strict=True))

    @property
    def ids(self) -> tuple[str, ...]:
        """Element ids among the arguments."""
        kinds = _KINDS[self.name]
        return tuple(str(arg) for kind, arg in zip(kinds, self.args, strict=True) if kind == "id")

    def with_ids(self, mapping: dict[str, str]) -> Action:
        """Return a copy with each id replaced by `mapping[id]`."""
        kinds = _KINDS[self.name]
        args = (
            mapping[str(arg)] if kind == "id" else arg
            for kind, arg in zip(kinds, self.args, strict=True)
        )
        return Action(self.name, tuple(args))


def parse_action(text: str, extra: Collection[str] = ()) -> Action:
    """Parse a text that is exactly one call of an action; white space around it is ignored.

    Args:
        text: a model's completion, e.g. `click('13')`.
        extra: names of `EXTRA_ACTIONS` that are allowed.

    Returns:
        The action.

    Raises:
        InvalidAction: the text is anything else: prose, a code fence, two calls, keyword
            arguments, `click(13)` without quotes, more than `MAX_LENGTH` characters.
    """
    if len(text) > MAX_LENGTH:
        raise _invalid(text)
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a string is a warning
            call = ast.parse(text, mode="eval").body
        end = len(text.encode())
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _invalid(text) from None
    whole = (call.lineno, call.col_offset, call.end_lineno, call.end_col_offset) == (1, 0, 1, end)
    if not whole or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise _invalid(text)
    name = call.func.id
    kinds = _KINDS.get(name) if name in ACTIONS or name in extra else None
    if kinds is None:
        names = ", ".join([*ACTIONS, *extra])
        raise InvalidAction(f"there is no action {_short(name)}; actions: {names}")
    if call.keywords or len(call.args) != len(kinds):
        raise _wrong_arguments(name, text)
    try:
        args = tuple(_argument(node, kind) for node, kind in zip(call.args, kinds, strict=True))
    except ValueError:
        raise _wrong_arguments(name, text) from None
    return Action(name, args)


def page_actions(allowed: Collection[str], roles: Iterable[str]) -> tuple[str, ...]:
    """Return the actions of `EXTRA_ACTIONS` on a page.

    Args:
        allowed: those that the task allows on all its pages.
        roles: roles of the page's elements.
    """
    if DRAWN_ROLES.isdisjoint(roles):
        return tuple(allowed)
    return (*allowed, *(name for name in POINT_ACTIONS if name not in allowed))


def format_action(action: Action) -> str:
    """Format an action as text: the inverse of `parse_action`."""
    return f"{action.name}({', '.join(repr(arg) for arg in action.args)})"


def possible_actions(elements: Sequence[Element], goal: str) -> Iterator[str]:
    """Yield a click on every element and drawing, and into text fields each quote of the goal.

    At most `MAX_ACTIONS` of them.
    """
    quotes = [quote for quote in re.findall(r'"([^"]+)"', goal) if len(quote) < MAX_LENGTH]

    def every() -> Iterator[str]:
        for element in elements:
            if not element.id and isinstance(element, Drawing):
                x, y = element.middle
                if min(x, y) >= 0 and max(x, y) <= MAX_PIXELS:
                    yield f"click_at({x}, {y})"
            elif element.id:
                yield f"click({element.id!r})"
                if element.role in TEXT_ROLES:
                    yield from (f"fill({element.id!r}, {quote!r})" for quote in quotes)

    yield from islice(every(), MAX_ACTIONS)


def _argument(node: ast.expr, kind: str) -> str | int | float:
    value: object = None
    if isinstance(node, ast.Constant | ast.UnaryOp):
        value = ast.literal_eval(node)
    if kind in ("number", "pixel"):
        # A bool is an int to isinstance, and an infinity is refused by the bound.
        if (type(value) is int or type(value) is float) and abs(value) <= MAX_PIXELS:
            if kind == "pixel" and value < 0:
                raise ValueError(value)
            return value
        raise ValueError(value)
    if not isinstance(value, str) or (kind == "id" and not _ID.fullmatch(value)):
        raise ValueError(value)
    value.encode()  # a lone surrogate cannot be sent: UnicodeEncodeError is a ValueError
    return value


def usage(name: str) -> str:
    """Return an example of an action, such as `goto('text')`."""
    examples, pixels = {"id": "'12'", "text": "'text'", "number": "200"}, cycle(EXAMPLE_POINTS)
    arguments = (next(pixels) if kind == "pixel" else examples[kind] for kind in _KINDS[name])
    return f"{name}({', '.join(arguments)})"


def _wrong_arguments(name: str, text: str) -> InvalidAction:
    return InvalidAction(f"expected {usage(name)}, got: {_short(text)}")


def _invalid(text: str) -> InvalidAction:
    return InvalidAction(f"expected one action such as click('12'), got: {_short(text)}")


def _short(text: str, limit: int = 60) -> str:
    text = text if len(text) <= limit else text[:limit] + "..."
    return ascii(text) if not text.isprintable() else text
