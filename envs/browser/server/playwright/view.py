"""What a site's page shows: the marked elements of all its frames, as text and as rectangles."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from envs.base import Box
from envs.browser.drawings import read_drawings, with_drawings
from envs.browser.page_text import format_page, simplify_axtree
from envs.browser.server.drawn import drawn_metadata
from envs.browser.server.errors import BrowserError, BrowserGone, NavigatedAway
from envs.browser.server.playwright.tab import Tab
from envs.browser.server.tree import in_window, marked_only, tree_text

FRAME_DEADLINE_S = 3.0
"""How long a frame may take to respond; the page is read without its elements' ids then."""


MAX_TEXT = 5_000
"""Characters of an element's name or value; the rest is cut."""

IGNORED = ("ListMarker",)
"""Roles that only repeat what the layout shows."""


@dataclass
class View:
    """A page as it was read.

    Attributes:
        text: the accessibility tree of what the window shows, as BrowserGym formats it.
        url: address of the page.
        boxes: the visible parts of the elements by their ids, in pixels of the window.
        left_out: number of lines "above" and "below" the window, and "clipped": in lists.
        names: names of elements that have none, by their ids; see `names.js`.
        drawn: its `drawings`, and how many `more` there are; see `drawings.js`.
    """

    text: str
    url: str
    boxes: dict[str, Box] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)

    def page(self) -> str:
        """Return the page as a model reads it, but with the server's ids."""
        drawn = drawn_metadata(self.drawn)
        drawings = read_drawings(drawn.get("drawings", []))
        elements = with_drawings(simplify_axtree(self.text, self.names), drawings, {})
        return format_page(elements, {**self.left_out, **drawn.get("left_out", {})})


async def settle(tab: Tab) -> None:
    """Wait until the effects of the last action are over, in every frame.

    Raises:
        NavigatedAway: the page navigated; wait for it, and settle again.
        BrowserError: the infrastructure failed.
    """
    frames = [frame for frame in tab.page.frames[1:] if not frame.url.startswith("chrome-error:")]
    await asyncio.gather(
        tab.run("browserServer.settle()"),
        *(_tolerant(tab.run_in(frame, "browserServer.settle()")) for frame in frames),
    )


async def read(tab: Tab, height: int) -> View:
    """Read the page.

    Args:
        tab: a page that has settled.
        height: height of the window in pixels.

    Raises:
        NavigatedAway: the page navigated in the meantime.
        BrowserError: the infrastructure failed.
    """
    places = await _mark(tab, tab.page.main_frame, "", 0, 0, height)
    tab.frames = {"": tab.page.main_frame}
    await _mark_frames(tab, tab.page.main_frame, places, height)
    tab.known = places["all"]
    recorded = await tab.trees()
    unmark = asyncio.gather(
        *(_tolerant(tab.run_in(f, "browserServer.unmark()")) for f in tab.frames.values())
    )
    names = places["names"]
    text, left_out = in_window(_text(recorded, places), places["boxes"], places["outside"], names)
    await unmark
    return View(text, tab.page.url, places["boxes"], left_out, names, places["drawn"])


async def _mark(
    tab: Tab, frame: Any, prefix: str, x: float, y: float, height: int
) -> dict[str, Any]:
    """Mark the elements of a frame, and return their places; see `page.js`."""
    arguments = json.dumps([prefix, x, y, height])[1:-1]
    places: dict[str, Any] = await tab.run_in(frame, f"browserServer.mark({arguments})")
    return places


async def _mark_frames(tab: Tab, parent: Any, places: dict[str, Any], height: int) -> None:
    """Mark the elements of the frames in a frame, and add their places."""

    async def mark(frame: Any) -> None:
        element = await tab.browser.call(frame.frame_element())
        bid = await tab.browser.call(element.get_attribute(tab.attribute))
        if bid not in places["frames"]:
            return
        x, y = places["frames"][bid]
        own = await _mark(tab, frame, bid, x, y, height)
        tab.frames[bid] = frame
        places["all"] += own.pop("all")
        drawn = own.pop("drawn")
        places["drawn"]["drawings"] += drawn["drawings"]
        places["drawn"]["more"] += drawn["more"]
        for kind, found in own.items():
            places[kind].update(found)
        await _mark_frames(tab, frame, places, height)

    await asyncio.gather(*(_tolerant(mark(frame)) for frame in parent.child_frames))


def _text(recorded: Any, places: dict[str, Any]) -> str:
    """Format the trees of a site's page: long texts are cut, and ids are those of the marks."""
    trees, frames, inside = recorded
    for tree in trees.values():
        for node in tree["nodes"]:
            for key in ("name", "value"):
                text = node.get(key, {}).get("value")
                if isinstance(text, str) and len(text) > MAX_TEXT:
                    node[key]["value"] = text[:MAX_TEXT] + "..."
    return marked_only(tree_text(trees, frames, inside, IGNORED), set(places["all"]))


async def _tolerant(work: Any) -> None:
    """Await what a frame does; one that is gone, blocks scripts or hangs does not matter."""
    try:
        await asyncio.wait_for(work, FRAME_DEADLINE_S)
    except BrowserGone:
        raise
    except (BrowserError, NavigatedAway, TimeoutError):
        return
