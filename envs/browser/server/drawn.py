"""The drawings that `drawings.js` found, as metadata of an observation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envs.browser.limits import MAX_DRAWINGS, MAX_DRAWN_TEXT
from envs.browser.server.secrets import NO_SECRETS, Secrets


def drawn_metadata(drawn: Mapping[str, Any], secrets: Secrets = NO_SECRETS) -> dict[str, Any]:
    """Return the metadata: `drawings`, and `left_out` if there are more; nothing without drawings.

    Args:
        drawn: the results of `findDrawings` of all frames; empty if the page was not read.
        secrets: values that no text shows, nor a part of one.
    """
    if not drawn.get("drawings"):
        return {}
    drawings, more = drawn["drawings"][:MAX_DRAWINGS], drawn["more"]
    more += len(drawn["drawings"]) - len(drawings)
    parts = secrets.parts([each.get("text", "") for each in drawings]) if secrets else {}
    for i, each in enumerate(drawings):
        if "text" in each:
            each["text"] = parts.get(i, secrets.hide(each["text"]))[:MAX_DRAWN_TEXT]
    return {"drawings": drawings} | ({"left_out": {"drawn": more}} if more else {})
