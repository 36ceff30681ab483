"""A Chromium that its user started: one new tab in it, which is left open at the end."""

from __future__ import annotations

import re
from typing import Any

from envs.browser.foreign_text import one_line
from envs.browser.server.page_script import page_script
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.window import ATTRIBUTE, NAVIGATION_MS, TIMEOUT_MS, Window

LOCAL = re.compile(r"https?://(127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}/?")


class ConnectedChromium(PlaywrightChromium):
    """A running Chromium, and the node process that controls it.

    Args:
        address: of its DevTools, such as `http://127.0.0.1:9222`.

    Raises:
        ValueError: the address is not one of this machine.
    """

    is_shared = True

    def __init__(self, address: str):
        super().__init__()
        if not LOCAL.fullmatch(address):
            raise ValueError(
                "a running browser's address must be such as http://127.0.0.1:9222, on this "
                f"machine, got {address!r:.80}"
            )
        self._address = address

    async def start(self) -> None:
        """Connect to the browser.

        Raises:
            BrowserGone: there is none; the message contains the reason.
        """
        await super().start()
        # Playwright would take every download, of all tabs. This ends with the connection.
        deny = {"behavior": "deny", "eventsEnabled": True}
        await self.call(self._session.send("Browser.setDownloadBehavior", deny))

    def _find(self) -> str:
        return self._address

    async def _launch(self, chromium: Any, path: str) -> Any:
        return await chromium.connect_over_cdp(path)

    def _why_not_started(self, path: str, error: str) -> str:
        return (
            f"no browser at {path}: was it started with --remote-debugging-port? "
            f"{one_line(error.partition('Call log')[0])}"
        )


class ConnectedWindow(Window):
    """A new tab in the default context of a running Chromium, with that context's cookies."""

    async def open(self) -> None:
        """Open the tab."""
        width, height = self._viewport
        call = self.browser.call
        self._context = self.browser.browser.contexts[0]
        # Playwright would answer the dialogs of every tab if nobody listened.
        self._context.on("dialog", self._on_dialog)
        page = await call(self._context.new_page())
        self.tabs.adopt(page, page_script(ATTRIBUTE))
        page.set_default_timeout(TIMEOUT_MS)
        page.set_default_navigation_timeout(NAVIGATION_MS)
        await call(page.set_viewport_size({"width": width, "height": height}))
        await self.tabs.front()

    async def close(self) -> None:
        """Close the tab, and those that it opened."""
        self.dialogs.cancel()
        if self._context is None or not self.browser.alive:
            return
        self._context.remove_listener("dialog", self._on_dialog)
        await self.tabs.close()

    def _on_dialog(self, dialog: Any) -> None:
        if self.tabs.has(dialog.page):
            self.dialogs.on_dialog(dialog)
