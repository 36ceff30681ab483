"""Helpers of the solvers: find elements on a page, write actions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps

from envs.browser.actions import Action
from envs.browser.foreign_text import unquote
from envs.browser.limits import MAX_SOLVED
from envs.browser.page_text import QUOTED, Element

Page = Sequence[Element]
Solver = Callable[[str, Page, int], Action]
"""`(goal, elements, step from 0) -> action`; LookupError if the page lacks what it needs."""

_VALUE = re.compile(rf", value=({QUOTED}|[^,]*)")


def plan(actions_of: Callable[[str, Page], list[Action]]) -> Solver:
    """Turn a function that lists every action into a solver that returns one per step.

    Args:
        actions_of: `(goal, elements) -> actions`; called at each step with the current page.
    """

    @wraps(actions_of)
    def solve(goal: str, elements: Page, step: int) -> Action:
        actions = actions_of(goal, elements)
        if step >= len(actions):
            raise LookupError(f"expected to be done after {len(actions)} actions, at {goal!r}")
        return actions[step]

    return solve


def find_all(elements: Page, role: str, name: str | None = None, count: int = 1) -> list[Element]:
    """Return the elements of a role that have an id, in page order.

    Raises:
        LookupError: there are fewer than `count`.
    """
    found = [e for e in elements if e.id and e.role == role and name in (None, e.name)]
    if len(found) < count:
        wanted = f"{count} of {role}" if name is None else f"{count} of {role} {name!r}"
        raise LookupError(f"expected {wanted}, got the page {list(map(str, elements))}")
    return found


def find(elements: Page, role: str, name: str | None = None, nth: int = 0) -> Element:
    """Return the nth element of a role, counted from 0.

    Raises:
        LookupError: there are not that many.
    """
    return find_all(elements, role, name, count=nth + 1)[nth]


def shown(elements: Page, name: str, role: str = "text") -> list[Element]:
    """Return the elements of this role and name that have an id, possibly none."""
    return [e for e in elements if e.id and e.role == role and e.name == name]


def guessed(elements: Page, words: str, count: int = 0) -> list[Element]:
    """Return the elements whose name is a guess that begins with these words, in page order.

    Raises:
        LookupError: there are fewer than `count`.
    """
    found = [e for e in elements if e.id and re.match(rf"{re.escape(words)}\b", e.guess)]
    if len(found) < count:
        raise LookupError(f"expected {count} of ({words}), got the page {list(map(str, elements))}")
    return found


def after(elements: Page, start: Element, role: str, name: str) -> Element:
    """Return the first element of this role and name after `start` on the page.

    Raises:
        LookupError: there is none.
    """
    return find(elements[list(elements).index(start) + 1 :], role, name)


def click(element: Element) -> Action:
    """Return a click on the element."""
    return Action("click", (element.id,))


def fill(element: Element, text: str) -> Action:
    """Return the action that fills the element with the text."""
    return Action("fill", (element.id, text))


def submit(elements: Page, name: str = "Submit") -> Action:
    """Return a click on the button of this name."""
    return click(find(elements, "button", name))


def value(element: Element) -> str:
    """Return the value of a field, empty if it has none."""
    found = _VALUE.search(element.state)
    if found is None:
        return ""
    return unquote(found[1]) if re.fullmatch(QUOTED, found[1]) else found[1]


def quoted(goal: str, count: int = 1) -> list[str]:
    """Return the texts between double quotes in the goal.

    Raises:
        LookupError: there are fewer than `count`.
    """
    texts = re.findall(r'"([^"]*)"', goal)
    if len(texts) < count:
        raise LookupError(f"expected {count} texts in double quotes, got the goal {goal!r}")
    return texts


def groups(pattern: str, goal: str) -> tuple[str, ...]:
    """Return the groups of a pattern in the goal.

    Raises:
        LookupError: the goal does not match, or is longer than `MAX_SOLVED`.
    """
    found = re.search(pattern, goal) if len(goal) <= MAX_SOLVED else None
    if found is None:
        raise LookupError(f"expected a goal like {pattern!r}, got {goal[:MAX_SOLVED]!r}")
    return found.groups()


def ordinal(goal: str) -> int:
    """Return the ordinal in a goal, counted from 0: 2 for `3rd`."""
    return int(groups(r"(\d+)(?:st|nd|rd|th)\b", goal)[0]) - 1


def word(text: str, nth: int) -> str:
    """Return the nth word without commas and full stops; -1 is the last one.

    Raises:
        LookupError: there are not that many.
    """
    words = text.split()
    if not -len(words) <= nth < len(words):
        raise LookupError(f"expected a word at {nth}, got the text {text!r}")
    return words[nth].strip(".,")
