"""The accessibility tree as text: BrowserGym's own code, run on recorded responses of Chromium."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from envs.browser.page_text import simplify_axtree

MAIN_FRAME: dict[str, Any] = {"frame": {"id": "main"}}
"""The frame tree of a page without frames."""

_DATES = {"Date", "DateTime", "InputTime"}
_LINE = re.compile(r"(\t*+)(?:\[(\w++)\] )?")


def tree_text(
    trees: Mapping[str, Any],
    frames: dict[str, Any] = MAIN_FRAME,
    inside: Mapping[int, str] = MappingProxyType({}),
    ignored: Collection[str] = (),
) -> str:
    """Format the trees of a page's frames as BrowserGym does, with the elements' ids.

    Args:
        trees: the result of `Accessibility.getFullAXTree` by frame, while the page was marked.
        frames: Chromium's `frameTree`, with the frames that `trees` has.
        inside: the frame inside of an element, by the backend node's id.
        ignored: roles to leave out, besides those that BrowserGym leaves out.
    """
    from browsergym.core.observation import extract_merged_axtree

    return merged_tree_text(extract_merged_axtree(_Recording(trees, frames, inside)), ignored)


def merged_tree_text(tree: dict[str, Any], ignored: Collection[str] = ()) -> str:
    """Format a tree that BrowserGym has merged, its `axtree_object`.

    Args:
        tree: the merged tree.
        ignored: roles to leave out, besides those that BrowserGym leaves out.
    """
    from browsergym.utils.obs import IGNORED_AXTREE_ROLES, flatten_axtree_to_str

    # BrowserGym does not know InlineTextBox, which repeats the text above it. Generic nodes
    # stay: in click-link only they have an id.
    roles = [*IGNORED_AXTREE_ROLES, "InlineTextBox", *ignored]
    return str(flatten_axtree_to_str(tree, skip_generic=False, ignored_roles=roles))


def marked_only(text: str, bids: Collection[str]) -> str:
    """Return a tree without the ids that were not given to its elements, and without date parts.

    Args:
        text: what `tree_text` returned.
        bids: the ids that were given.
    """
    lines, field_depth = [], -1
    for line in text.splitlines():
        match = _LINE.match(line)
        depth, bid = (len(match[1]), match[2]) if match else (0, None)
        if 0 <= field_depth < depth:
            continue  # day, month and year of a date field, which has its value itself
        rest = line[match.end() :] if match else line
        field_depth = depth if rest.split(" ", 1)[0] in _DATES else -1
        lines.append(line if bid is None or bid in bids else "\t" * depth + rest)
    return "\n".join(lines)


def in_window(
    text: str,
    visible: Collection[str],
    outside: Mapping[str, str],
    names: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, dict[str, int]]:
    """Return the part of a tree that the window shows, and how much it leaves out.

    A line stays if its element is in the window, or if one below it is. A line without an id, or of
    an element without a size (an option of a closed list), follows the one that contains it.

    Args:
        text: what `tree_text` returned.
        visible: ids of the elements in the window.
        outside: where each other element with a size is: "above", "below", "clipped" (in a list
            that scrolls) or "unreachable".
        names: names of elements that have none; see `simplify_axtree`.

    Returns:
        The text, and the number of lines that the model does not see by where they are.
    """
    lines = text.splitlines()
    parsed = [_LINE.match(line) for line in lines]
    depths = [len(match[1]) if match else 0 for match in parsed]
    bids = [(match[2] or "") if match else "" for match in parsed]
    shown: list[bool] = []
    ancestors: list[int] = []  # the open lines, outermost first
    for i, (depth, bid) in enumerate(zip(depths, bids, strict=True)):
        while ancestors and depths[ancestors[-1]] >= depth:
            ancestors.pop()
        inherited = shown[ancestors[-1]] if ancestors else True
        shown.append(bid in visible or (bid not in outside and inherited))
        if shown[i]:
            for ancestor in ancestors:
                shown[ancestor] = shown[ancestor] or (bid in visible)
        ancestors.append(i)
    kept = "\n".join(line for line, keep in zip(lines, shown, strict=True) if keep)
    left_out = {"above": 0, "below": 0, "clipped": 0}
    seen = {element.id for element in simplify_axtree(kept, names)}
    for element in simplify_axtree(text, names) if not all(shown) else ():
        place = outside.get(element.id, "") if element.id not in seen else ""
        if place in left_out:
            left_out[place] += 1
    return kept, left_out


class _Recording:
    """Stands in for a Playwright page, its context and its CDP session."""

    def __init__(self, trees: Mapping[str, Any], frames: dict[str, Any], inside: Mapping[int, str]):
        self.context = self
        self._trees, self._frames, self._inside = trees, frames, inside

    def new_cdp_session(self, page: Any) -> _Recording:
        return self

    def send(self, method: str, parameters: dict[str, Any]) -> Any:
        if method == "Page.getFrameTree":
            return {"frameTree": self._frames}
        if method == "Accessibility.getFullAXTree":
            return self._trees[parameters["frameId"]]
        assert method == "DOM.describeNode", method
        return {"node": {"frameId": self._inside.get(parameters["backendNodeId"])}}

    def detach(self) -> None:
        pass
