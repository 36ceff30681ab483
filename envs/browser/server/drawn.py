"""The drawings that `drawings.js` found, as metadata of an observation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def drawn_metadata(
    drawn: Mapping[str, Any], hide: Callable[[str], str] = lambda text: text
) -> dict[str, Any]:
    """Return the metadata: `drawings`, and `left_out` if there are more; nothing without drawings.

    Args:
        drawn: the result of `findDrawings`; empty if the page was not read.
        hide: what is done to texts before they are sent.
    """
    if not drawn.get("drawings"):
        return {}
    drawings = [
        {**each, "text": hide(each["text"])} if "text" in each else each
        for each in drawn["drawings"]
    ]
    return {"drawings": drawings} | (
        {"left_out": {"drawn": drawn["more"]}} if drawn["more"] else {}
    )
