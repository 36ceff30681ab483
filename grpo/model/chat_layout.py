"""How messages are given to a chat template, and the probe chat that tells which way it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs.base import Message

MARKERS = tuple(f"PROBE-{i}-OF-THE-CHAT-TEMPLATE" for i in range(4))
PROBE: tuple[Message, ...] = tuple(
    {"role": role, "content": marker}
    for role, marker in zip(("system", "user", "assistant", "user"), MARKERS, strict=True)
)


class Layout(NamedTuple):
    """How messages are given to a template.

    Attributes:
        merged: the system message goes into the first user message, and messages of one role in a
            row become one.
        as_list: contents are lists of parts, `[{"type": "text", "text": ...}]`.
    """

    merged: bool = False
    as_list: bool = False

    def __str__(self) -> str:
        """Describe what is not as in the environment's messages."""
        merged = ["the system message merged into the first user message"] * self.merged
        return " and ".join([*merged, *["contents as lists of text parts"] * self.as_list])

    def arrange(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages as the template takes them."""
        arranged = merge_roles(messages) if self.merged else messages
        if not self.as_list:
            return [dict(message) for message in arranged]
        return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in arranged]


LAYOUTS = (Layout(), Layout(merged=True), Layout(as_list=True), Layout(merged=True, as_list=True))
"""In the order in which they are tried."""


def merge_roles(messages: Sequence[Message]) -> list[Message]:
    """Give the system's messages to the user, and join neighbours of one role."""
    merged: list[Message] = []
    for message in messages:
        role = "user" if message["role"] == "system" else message["role"]
        if merged and merged[-1]["role"] == role:
            text = f"{merged[-1]['content']}\n\n{message['content']}"
            merged[-1] = {"role": role, "content": text}
        else:
            merged.append({**message, "role": role})
    return merged


def shows_every_marker(rendered: str, layout: Layout) -> bool:
    """Tell whether every message of the probe chat is in a rendered text once, and in order.

    A list of parts that is printed as such, in brackets and quotes, does not count.
    """
    places = [rendered.find(marker) for marker in MARKERS]
    once = all(rendered.count(marker) == 1 for marker in MARKERS)
    printed = layout.as_list and re.search(rf"""["']{MARKERS[2]}["']""", rendered)
    return once and places == sorted(places) and not printed
