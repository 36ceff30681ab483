"""One of Playwright's pages: scripts, the trees of its frames, and where it may go."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Collection
from typing import Any

from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.browser import PlaywrightChromium


class Tab:
    """One page of a context whose pages have `page.js` in them.

    Every method raises `BrowserError` if the browser or the page is gone, and `NavigatedAway` if
    the page navigated in the meantime.

    Args:
        browser: the page's Chromium.
        page: Playwright's page.
        admits: tells whether a document may be loaded from an address. What is refused never leaves
            the browser, and the page stays as it is.
        attribute: the attribute that holds an element's id.
        script: runs in the page's documents before their own scripts, as in those of a context
            that has it already.

    Attributes:
        page: Playwright's page.
        opened: number of tabs that this one has opened.
        frames: Playwright's frames by the letters in front of their elements' ids.
        known: ids of the elements as the page was read last.
    """

    def __init__(
        self,
        browser: PlaywrightChromium,
        page: Any,
        admits: Callable[[str], bool],
        attribute: str = "bid",
        script: str = "",
    ):
        self.browser = browser
        self.attribute = attribute
        self.page = page
        self.opened = 0
        self.frames: dict[str, Any] = {"": page.main_frame}
        self.known: Collection[str] = ()
        self._admits = admits
        self._script = script
        self._session: Any = None

    async def open(self) -> None:
        """Connect to the page; before that, nothing else works."""
        self._session = await self.browser.call(self.page.context.new_cdp_session(self.page))
        self._session.on("Fetch.requestPaused", self._on_request)
        self._session.on("Page.windowOpen", self._on_window_open)
        await self.send("Page.enable")
        patterns = [{"urlPattern": "*", "resourceType": "Document"}]
        await self.send("Fetch.enable", patterns=patterns)
        if self._script:
            await self.browser.call(self.page.add_init_script(self._script))
            await self.run(f"(() => {{ if (!window.browserServer) {{ {self._script} }} }})()")

    async def send(self, method: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol to the page."""
        return await self.browser.call(self._session.send(method, parameters))

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the main frame and return its value; see `run_in`."""
        return await self.run_in(self.page.main_frame, expression)

    async def run_in(self, frame: Any, expression: str) -> Any:
        """Evaluate JavaScript in a frame and return its value, awaited if it is a promise."""
        # As one text: Playwright describes objects value by value.
        text = await self.browser.call(
            frame.evaluate(f"(async () => JSON.stringify(await ({expression})))()")
        )
        return None if text is None else json.loads(text)

    async def screenshot(self) -> str:
        """Return a picture of the window, a PNG as base64."""
        options = {"animations": "allow", "caret": "initial", "scale": "css"}
        return base64.b64encode(await self.browser.call(self.page.screenshot(**options))).decode()

    async def trees(self) -> tuple[dict[str, Any], dict[str, Any], dict[int, str]]:
        """Return the accessibility tree of every frame, with the ids of marked elements.

        Returns:
            The arguments of `envs.browser.server.tree.tree_text`.
        """
        frame_tree = (await self.send("Page.getFrameTree"))["frameTree"]
        names, pending = [], [frame_tree]
        while pending:
            frame = pending.pop()
            pending += frame.get("childFrames", [])
            names.append(frame["frame"]["id"])
        trees = await asyncio.gather(
            *(self.send("Accessibility.getFullAXTree", frameId=name) for name in names)
        )
        owners = [
            node["backendDOMNodeId"]
            for tree in (trees if len(names) > 1 else ())
            for node in tree["nodes"]
            if node["role"]["value"] == "Iframe"
        ]
        nodes = await asyncio.gather(
            *(self.send("DOM.describeNode", backendNodeId=owner) for owner in owners)
        )
        inside = {
            owner: node["node"]["frameId"]
            for owner, node in zip(owners, nodes, strict=True)
            if "frameId" in node["node"]
        }
        return dict(zip(names, trees, strict=True)), frame_tree, inside

    def _on_window_open(self, event: dict[str, Any]) -> None:
        self.opened += 1

    def _on_request(self, event: dict[str, Any]) -> None:
        if self._admits(event["request"]["url"]):
            self.browser.run(self._answer("Fetch.continueRequest", event["requestId"]))
        else:
            self.browser.run(self._refuse(event["requestId"]))

    async def _refuse(self, request: str) -> None:
        # Chromium keeps the page for this reason, and shows an error page for any other.
        await self._answer("Fetch.failRequest", request, errorReason="Aborted")
        await self.stay()

    async def stay(self) -> None:
        """Tell every frame that the navigation which was about to happen does not."""
        for frame in self.page.frames:
            try:
                await self.run_in(frame, "browserServer.stay()")
            except BrowserError:
                continue  # it was a new tab or a frame without a page

    async def _answer(self, method: str, request: str, **parameters: Any) -> None:
        try:
            await self.send(method, requestId=request, **parameters)
        except BrowserError:
            return  # the request is gone, and its page with it
