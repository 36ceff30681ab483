"""Screenshots in which secret values are covered, wherever the page shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from envs.base import Box
from envs.browser.server.playwright.tab import Tab
from envs.browser.server.secrets import Secrets

MARGIN = 2
COLOUR = "black"

DRAWN = ("alt", "label", "placeholder", "value")
"""Attributes whose text is drawn."""

FRAMES = ("EMBED", "FRAME", "IFRAME", "OBJECT")


async def covered_screenshot(tab: Tab, secrets: Secrets) -> str:
    """Return a picture of the window, a PNG as base64, with the secret values covered.

    What the page shows is read from Chromium's layout, before the picture and after it: the page's
    own scripts learn nothing. Fields of type password are covered, too.

    Raises:
        ModuleNotFoundError: pillow is not installed.
        BrowserError: the infrastructure failed.
    """
    if not secrets:
        return await tab.screenshot()
    before = await tab.send("DOMSnapshot.captureSnapshot", computedStyles=[])
    picture = await tab.screenshot()
    after = await tab.send("DOMSnapshot.captureSnapshot", computedStyles=[])
    return _paint(picture, [*_secret_boxes(before, secrets), *_secret_boxes(after, secrets)])


def _secret_boxes(snapshot: dict[str, Any], secrets: Secrets) -> Iterator[Box]:
    """Yield the rectangles of the window that show secret values."""
    documents, strings = snapshot["documents"], snapshot["strings"]
    # The frame element that holds a document, as (document, node).
    inside: dict[int, tuple[int, int]] = {}
    covered: list[tuple[int, int]] = []
    for d, document in enumerate(documents):
        held = document["nodes"]["contentDocumentIndex"]
        inside |= {c: (d, n) for n, c in zip(held["index"], held["value"], strict=True)}
        names = enumerate(document["nodes"]["nodeName"])
        frames = {n for n, name in names if strings[name] in FRAMES}
        # What a frame shows in a process of its own is not in the snapshot.
        covered += [(d, node) for node in frames - set(held["index"])]
        covered += [(d, node) for node in _secret_nodes(document, strings, secrets)]
    for d, node in covered:
        while d in inside:  # the whole frame
            d, node = inside[d]
        layout = documents[d]["layout"]
        x, y = documents[d].get("scrollOffsetX", 0), documents[d].get("scrollOffsetY", 0)
        for n, (left, top, width, height) in zip(
            layout["nodeIndex"], layout["bounds"], strict=True
        ):
            if n == node:
                yield left - x, top - y, width, height


def _secret_nodes(document: dict[str, Any], strings: list[str], secrets: Secrets) -> Iterator[int]:
    """Yield the nodes of a document that show a value, also one that is split among them."""
    nodes, layout = document["nodes"], document["layout"]
    for kind in ("inputValue", "textValue"):
        for node, value in zip(nodes[kind]["index"], nodes[kind]["value"], strict=True):
            if secrets.holds(strings[value]):
                yield node
    laid_out = set(layout["nodeIndex"])
    for node, pairs in enumerate(nodes["attributes"]):
        texts = [strings[i] for i in pairs]  # name, value, name, value, ...
        attributes = dict(zip(texts[::2], texts[1::2], strict=True))
        shown = [text for name, text in attributes.items() if name in DRAWN]
        if attributes.get("type") == "password" or any(map(secrets.holds, shown)):
            yield node
        text = nodes["nodeValue"][node]
        if node not in laid_out and text >= 0 and secrets.holds(strings[text]):
            yield from _list_of(node, nodes, strings, laid_out)
    pieces = [
        (node, strings[text])
        for node, text in zip(layout["nodeIndex"], layout["text"], strict=True)
        if text >= 0
    ]
    parts = secrets.parts([text for _, text in pieces])
    for i, (node, text) in enumerate(pieces):
        if i in parts or secrets.holds(text):
            yield node


def _list_of(
    node: int, nodes: dict[str, Any], strings: list[str], laid_out: set[int]
) -> Iterator[int]:
    """Yield the list whose option a node is in, if it is."""
    names = []
    while node >= 0 and node not in laid_out:
        names.append(strings[nodes["nodeName"][node]])
        node = nodes["parentIndex"][node]
    if "OPTION" in names and node >= 0:
        yield node


def _paint(picture: str, boxes: list[Box]) -> str:
    try:
        from PIL import Image, ImageDraw
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "covering secrets on screenshots needs pillow: install the extra 'browser'"
        ) from error
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    draw = ImageDraw.Draw(image)
    for x, y, width, height in boxes:
        corner = (x + width + MARGIN, y + height + MARGIN)
        draw.rectangle((x - MARGIN, y - MARGIN, *corner), fill=COLOUR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
