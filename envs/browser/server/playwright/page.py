"""A page of MiniWoB: navigation, scripts, the tree and actions."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from envs.browser.actions import Action
from envs.browser.server.errors import BrowserError, evaluated
from envs.browser.server.page_script import SCREENSHOT_SCALE, VIEWPORT, page_script
from envs.browser.server.playwright.actions import perform
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.origins import Origins

ATTEMPTS = 5  # at opening a page that keeps navigating
_MARK = re.compile(r"browsergym_id_(\w+)")


class Page:
    """A page in a browser context of its own, with `page.js` in it.

    Actions and navigation are Playwright's. Scripts and the tree go through one DevTools session,
    which keeps their order, and without the script that Playwright needs in each document for its
    own `evaluate`. Every method raises BrowserError if the browser is gone.

    Args:
        browser: Chromium to open the page in.
        allowed: prefix of the addresses that the page may show; others are blocked.

    Attributes:
        page: Playwright's page, once it is open.
        frames: its main frame: MiniWoB's pages have no others.
        attribute: the attribute that holds an element's id.
        known: ids of the elements as the page was read last.
    """

    def __init__(self, browser: PlaywrightChromium, allowed: str):
        self.browser = browser
        self.allowed = allowed
        self.page: Any = None
        self.frames: dict[str, Any] = {}
        self.attribute = "bid"
        self.known: Collection[str] = ()
        self._context: Any = None
        self._session: Any = None
        self._crashed = False

    async def open(self) -> None:
        """Open the context and its page."""
        call = self.browser.call
        self._context = await call(
            # MiniWoB's pages are files: nothing is reached through the network.
            self.browser.browser.new_context(viewport=VIEWPORT, proxy=Origins(()).proxy())
        )
        await call(self._context.add_init_script(page_script()))
        self.page = await call(self._context.new_page())
        self.frames = {"": self.page.main_frame}
        self.page.on("crash", lambda _: self._on_crash())
        self._session = await call(self._context.new_cdp_session(self.page))
        self._session.on("Fetch.requestPaused", self._on_request)
        await self._send("Fetch.enable", patterns=[{"urlPattern": "*", "resourceType": "Document"}])

    async def close(self) -> None:
        """Close the context and its page."""
        if self._context is not None and self.browser.alive:
            await self.browser.call(self._context.close())

    async def goto(self, url: str) -> None:
        """Open an address with the pointer at (0, 0), and wait for its load event.

        Only the caller's deadline ends the wait.
        """
        await self.browser.call(self.page.mouse.move(0, 0))
        for attempt in range(1, ATTEMPTS + 1):
            try:
                await self.browser.call(self.page.goto(url, timeout=0))
                return
            except BrowserError as error:
                # The page that was there may have been about to go elsewhere, or to say that it
                # must not.
                if "interrupted by another navigation" not in str(error) or attempt == ATTEMPTS:
                    raise BrowserError(f"cannot open {url}: {error}") from error
                await self.loaded()

    async def loaded(self) -> None:
        """Wait for the load event of the page that is loading."""
        await self.browser.call(self.page.wait_for_load_state("load", timeout=0))

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript and return its value, awaited if it is a promise.

        Args:
            expression: JavaScript whose value can be written as JSON.

        Raises:
            NavigatedAway: the page navigated in the meantime.
            BrowserError: the expression threw.
        """
        # As one text: Playwright's client goes through objects value by value.
        response = await self._send(
            "Runtime.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        text = evaluated(response)
        return None if text is None else json.loads(text)

    async def tree(self) -> dict[str, Any]:
        """Return the accessibility tree of a marked page, and remove the marks."""
        tree = self._send("Accessibility.getFullAXTree")
        found: dict[str, Any] = (await asyncio.gather(tree, self.run("browserServer.unmark()")))[0]
        self.known = frozenset(_marks(found))
        return found

    async def screenshot(self) -> str:
        """Return a picture of the page, a PNG as base64."""
        return str((await self._send("Page.captureScreenshot", format="png"))["data"])

    async def perform(self, action: Action) -> None:
        """Execute an action.

        Raises:
            ActionRefused: the page does not allow it.
        """
        await perform(self, action, scroll_scale=SCREENSHOT_SCALE)

    async def _send(self, method: str, **parameters: Any) -> Any:
        try:
            return await self.browser.call(self._session.send(method, parameters))
        except BrowserError:
            if self._crashed:
                raise BrowserError("the page crashed") from None
            raise

    def _on_crash(self) -> None:
        self._crashed = True
        self.browser.run(self._give_up())

    async def _give_up(self) -> None:
        try:
            await self.close()  # else calls of the session would wait for the page
        except BrowserError:
            return

    def _on_request(self, event: dict[str, Any]) -> None:
        self.browser.run(self._admit(event["requestId"], event["request"]["url"]))

    async def _admit(self, request: str, url: str) -> None:
        try:
            if url.startswith(self.allowed):
                await self._send("Fetch.continueRequest", requestId=request)
            else:
                reason = "BlockedByClient"
                await self._send("Fetch.failRequest", requestId=request, errorReason=reason)
        except BrowserError:
            return  # the request is gone, and its page with it


def _marks(tree: dict[str, Any]) -> Iterator[str]:
    """Yield the ids in a tree of a marked page."""
    for node in tree["nodes"]:
        for its in node.get("properties", ()):
            if its["name"] == "roledescription" and (mark := _MARK.match(its["value"]["value"])):
                yield mark[1]
