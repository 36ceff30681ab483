"""The tabs of a window, and what their pages asked for and did not get."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from envs.browser.foreign_text import one_line
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.origins import Origins
from envs.browser.server.playwright.tab import Tab

BLANK = ("", ":", "about:blank")
LOADING_MS = 5_000
POLL_S = 0.02


class Tabs:
    """The tabs of a context, of which the last one opened is in front.

    Args:
        browser: the Chromium.
        origins: what the pages may reach.
        attribute: the attribute that holds an element's id.
    """

    def __init__(self, browser: PlaywrightChromium, origins: Origins, attribute: str):
        self.browser = browser
        self._origins = origins
        self._attribute = attribute
        self._tabs: list[Tab] = []
        self._opening: dict[Tab, asyncio.Future[None]] = {}
        self._refusals: list[str] = []
        self._outside: list[str] = []  # addresses of documents that were asked for and refused

    def follow(self, context: Any) -> None:
        """Follow a context of Playwright from now on."""
        context.on("page", self._on_page)
        context.on("request", self._on_request)

    def adopt(self, page: Any, script: str) -> None:
        """Follow a page, and those that it opens, of a context that has others.

        Args:
            page: Playwright's page.
            script: runs in its documents before their own scripts.
        """
        page.on("popup", lambda popup: self.adopt(popup, script))
        page.on("request", self._on_request)
        self._on_page(page, script)

    def has(self, page: Any) -> bool:
        """Return True if this is the page of a tab."""
        return any(tab.page == page for tab in self._tabs)

    async def close(self) -> None:
        """Close every tab."""
        for tab in self._tabs:
            await self.browser.call(tab.page.close())

    def __len__(self) -> int:
        return len(self._tabs)

    @property
    def url(self) -> str:
        """Address of the page in front."""
        return str(self._tabs[-1].page.url) if self._tabs else ""

    async def front(self) -> Tab:
        """Return the tab in front, connected.

        Raises:
            BrowserError: it cannot be connected to, or there is none left.
        """
        while self._tabs:
            tab = self._tabs[-1]
            if not tab.page.is_closed():
                try:
                    await self._opening[tab]
                    return tab
                except BrowserError:
                    if not tab.page.is_closed():
                        raise
            self._tabs.pop()
        raise BrowserError("every page of the window was closed")

    def refusals(self) -> list[str]:
        """Return what was refused since the last call: downloads, and addresses outside."""
        refused = [*self._refusals, *map(outside, self._outside)]
        self._refusals, self._outside = [], []
        return refused

    async def refuse(self, tab: Tab, reason: str) -> None:
        """Close a tab that cannot be shown; the reason is told."""
        self._refusals.append(reason)
        await self.browser.call(tab.page.close())

    async def all_opened(self) -> None:
        """Wait until Playwright knows every tab that a page has opened."""
        end = time.monotonic() + LOADING_MS / 1000
        while len(self._opening) <= sum(tab.opened for tab in self._opening):
            if time.monotonic() > end:
                return
            await asyncio.sleep(POLL_S)

    async def given_up(self, tab: Tab) -> bool:
        """Close a new tab that leads outside of the site, and return True if it did."""
        url = tab.page.url
        failed = url.startswith("chrome-error:") or (url in BLANK and self._outside)
        if url not in BLANK and not failed and not self._origins.admits(url):
            # In a browser without our proxy a new tab can be there before its requests are held.
            self._outside.append(url)
            failed = True
        if len(self._tabs) == 1 or not failed:
            return False
        await self.browser.call(tab.page.close())
        return True

    def _on_page(self, page: Any, script: str = "") -> None:
        tab = Tab(self.browser, page, self._origins.admits, self._attribute, script)
        opening = asyncio.ensure_future(tab.open())
        opening.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._tabs.append(tab)
        self._opening[tab] = opening
        page.on("download", lambda download: self._on_download(tab, download))

    def _on_request(self, request: Any) -> None:
        # Also of a tab that is not connected yet, which the proxy refuses.
        if request.is_navigation_request() and not self._origins.admits(request.url):
            self._outside.append(request.url)

    def _on_download(self, tab: Tab, download: Any) -> None:
        self.browser.run(tab.stay())
        self._refusals.append(
            f"a download was refused: {one_line(download.suggested_filename, 80)}"
        )


def outside(url: str) -> str:
    """Return the reason why an address was refused."""
    return f"{one_line(url, 100)} is outside of the site"
