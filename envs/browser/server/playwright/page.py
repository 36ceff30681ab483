"""MiniWoB's page on Playwright: the same interface as the other driver's."""

from __future__ import annotations

from typing import Any

from envs.browser.actions import Action
from envs.browser.server.errors import BrowserError
from envs.browser.server.page_script import SCREENSHOT_SCALE, VIEWPORT, page_script
from envs.browser.server.playwright.actions import perform
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.tab import Tab

LOAD_MS = 20_000


class Page:
    """A page in a browser context of its own; see `envs.browser.server.cdp.page.Page`."""

    def __init__(self, browser: PlaywrightChromium, allowed: str):
        self.browser = browser
        self.allowed = allowed
        self._context: Any = None
        self._tab: Any = None

    async def open(self) -> None:
        """Open the context and its page."""
        call = self.browser.call
        self._context = await call(self.browser.browser.new_context(viewport=VIEWPORT))
        await call(self._context.add_init_script(page_script()))
        page = await call(self._context.new_page())
        self._tab = Tab(self.browser, page, lambda url: url.startswith(self.allowed))
        await self._tab.open()

    async def close(self) -> None:
        """Close the context and its page."""
        if self._context is not None and self.browser.alive:
            await self.browser.call(self._context.close())

    async def goto(self, url: str) -> None:
        """Open an address with the pointer at (0, 0), and wait for its load event."""
        page = self._tab.page
        await self.browser.call(page.mouse.move(0, 0))
        try:
            await self.browser.call(page.goto(url, timeout=LOAD_MS))
        except BrowserError as error:
            raise BrowserError(f"cannot open {url}: {error}") from error

    async def loaded(self) -> None:
        """Wait for the load event of the page that is loading."""
        await self.browser.call(self._tab.page.wait_for_load_state("load", timeout=LOAD_MS))

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript and return its value, awaited if it is a promise."""
        return await self._tab.run(expression)

    async def tree(self) -> dict[str, Any]:
        """Return the accessibility tree of a marked page, and remove the marks."""
        tree: dict[str, Any] = await self._tab.send("Accessibility.getFullAXTree")
        await self.run("browserServer.unmark()")  # commands of two sessions have no order
        return tree

    async def screenshot(self) -> str:
        """Return a picture of the page, a PNG as base64."""
        return str(await self._tab.screenshot())

    async def perform(self, action: Action) -> None:
        """Execute an action.

        Raises:
            ActionRefused: the page does not allow it.
        """
        await perform(self._tab, action, scroll_scale=SCREENSHOT_SCALE)
