"""How messages are given to a chat template, and the probe chat that tells which way it takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs.base import Message

_TEXT = """Probe {0} of the chat template: <b>Bold</b> & "this", 'that' [1]
  button 'Indented' [{0}]{1}
\tlink 'https://a.example/?b=1&c=%20' [3]

End of probe {0}"""
_PAGE = "".join(f"\n    button 'Number {n}' [{n}]" for n in range(200))
MARKERS = tuple(_TEXT.format(i, _PAGE if i == 1 else "") for i in range(4))
"""Texts as pages have them, one of them long: some templates cut, escape or reformat texts."""
_SWITCHES = re.compile(r"/(?:no_)?think")
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

    def join(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages that the template shows, their contents still texts."""
        return merge_roles(messages) if self.merged else messages

    def arrange(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return the messages as the template takes them."""
        arranged = self.join(messages)
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


def first_lost(rendered: str, messages: Sequence[Message]) -> Message | None:
    """Return the first message whose text is not in a rendered chat, after those before it.

    White space at the ends of a text does not count, nor do the switches of a model's reasoning,
    which templates take out.
    """
    rendered, place = _SWITCHES.sub("", rendered), 0
    for message in messages:
        text = _SWITCHES.sub("", message["content"]).strip()
        place = rendered.find(text, place)
        if place < 0:
            return message
        place += len(text)
    return None


def shows_probe(rendered: Sequence[str], probe: Sequence[Message]) -> bool:
    """Tell whether the probe chat is shown once and in order, and its first two messages alone.

    Args:
        rendered: the whole probe chat, and its system and first user message alone.
        probe: the whole chat as it is given to the template.
    """
    whole, start = rendered
    once = all(whole.count(message["content"]) == 1 for message in probe)
    alone = probe[: len(probe) - 2]  # without the assistant and the last user
    return once and first_lost(whole, probe) is None and first_lost(start, alone) is None
