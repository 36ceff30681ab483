"""The place of one Chromium, which is started again when it is gone or hangs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from envs.browser.server.chromium import find_chromium
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.browser import PlaywrightChromium

if TYPE_CHECKING:
    from envs.browser.server.pooled_session import PooledSession

START_DEADLINE_S = 30.0
HEARTBEAT_S = 15.0
"""Seconds after which a Chromium that does not report its version counts as hanging."""


class Slot:
    """The slot of one Chromium, which is restarted when it is gone.

    Attributes:
        sessions: sessions with a page in this Chromium.
    """

    def __init__(self) -> None:
        self.sessions: set[PooledSession] = set()
        self._chromium: PlaywrightChromium | None = None
        self._starting = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """True while the Chromium runs."""
        return self._chromium is not None and self._chromium.alive

    async def browser(self) -> PlaywrightChromium:
        """Return the Chromium, started if it does not run.

        Raises:
            BrowserError: it does not start, or not in time.
        """
        async with self._starting:
            if self._chromium is None or not self._chromium.alive:
                await self.stop()
                chromium = PlaywrightChromium()
                try:
                    async with asyncio.timeout(START_DEADLINE_S):
                        await chromium.start()
                except TimeoutError:
                    path, deadline = find_chromium(), START_DEADLINE_S
                    raise BrowserError(f"{path} did not respond within {deadline:g} s") from None
                self._chromium = chromium
            return self._chromium

    async def check(self) -> None:
        """Stop the Chromium if it hangs; start it if it does not run."""
        with contextlib.suppress(BrowserError, TimeoutError):  # tried again at the next check
            browser = await self.browser()
            try:
                await asyncio.wait_for(browser.ping(), HEARTBEAT_S)
            except TimeoutError:
                await browser.stop()

    async def stop(self) -> None:
        """Stop the Chromium; its sessions are lost."""
        chromium, self._chromium = self._chromium, None
        if chromium is not None:
            await chromium.stop()
