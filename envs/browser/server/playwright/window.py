"""The browser window of an episode: a context of its own with its tabs, dialogs and refusals."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from envs.browser.actions import Action
from envs.browser.foreign_text import one_line
from envs.browser.server.errors import ActionRefused, BrowserError, NavigatedAway
from envs.browser.server.page_script import page_script
from envs.browser.server.playwright import actions, view
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.dialog import DialogOpened, Dialogs
from envs.browser.server.playwright.origins import Origins
from envs.browser.server.playwright.tab import Tab
from envs.browser.server.playwright.tabs import BLANK, LOADING_MS, Tabs, outside
from envs.browser.server.playwright.view import View

TIMEOUT_MS = 10_000
NAVIGATION_MS = 20_000
ATTRIBUTE = f"bid-{secrets.token_hex(4)}"  # that no page has
NEW_TAB_S = 3.0
ATTEMPTS = 5  # at reading a page that keeps navigating


class Window:
    """A context with one tab or more, of which the last one opened is in front.

    Args:
        browser: the Chromium.
        origins: what its pages may reach.
        viewport: width and height of the window in pixels.
        files: files that may be chosen in a file input, by their names.
        cookies: cookies of the window, as Playwright's `add_cookies` takes them.
        options: more options of Playwright's `new_context`.

    Attributes:
        dialogs: its dialogs.
        tabs: its tabs.
    """

    def __init__(
        self,
        browser: PlaywrightChromium,
        origins: Origins,
        viewport: tuple[int, int],
        files: Mapping[str, Path],
        cookies: Sequence[Any],
        options: Mapping[str, Any],
    ):
        self.browser = browser
        self.dialogs = Dialogs(browser)
        self.tabs = Tabs(browser, origins, ATTRIBUTE)
        self._origins = origins
        self._viewport = viewport
        self._files = files
        self._cookies = cookies
        self._options = options
        self._context: Any = None

    async def open(self) -> None:
        """Open the context and its first tab."""
        width, height = self._viewport
        call = self.browser.call
        self._context = await call(
            self.browser.browser.new_context(
                viewport={"width": width, "height": height},
                proxy=self._origins.proxy(),
                bypass_csp=True,  # page.js needs eval
                accept_downloads=False,
                **self._options,
            )
        )
        self._context.set_default_timeout(TIMEOUT_MS)
        self._context.set_default_navigation_timeout(NAVIGATION_MS)
        self._context.on("dialog", self.dialogs.on_dialog)
        self.tabs.follow(self._context)
        await call(self._context.add_init_script(page_script(ATTRIBUTE)))
        if self._cookies:
            await call(self._context.add_cookies(self._cookies))
        await call(self._context.new_page())
        await self.tabs.front()

    async def close(self) -> None:
        """Close the context with all that it holds."""
        self.dialogs.cancel()
        if self._context is not None and self.browser.alive:
            await self.browser.call(self._context.close())

    async def act(self, action: Action) -> None:
        """Execute an action.

        Raises:
            ActionRefused: the page or the task does not allow it.
            DialogOpened: a dialog came up; look at it.
            BrowserError: the infrastructure failed.
        """
        tab = await self.tabs.front()
        if self.dialogs.waiting is not None:
            await self.dialogs.act(action)
        elif action.name == "goto":
            url = urljoin(tab.page.url, str(action.args[0]))
            if not self._origins.has(url):
                raise ActionRefused(outside(url))
            await self.dialogs.race(self._navigate(tab.page.goto(url, wait_until="commit")))
        elif action.name == "go_back":
            await self.dialogs.race(self._go_back(tab))
        else:
            await self.dialogs.race(self._perform(tab, action))

    async def settle(self) -> None:
        """Wait until the effects of the last action are over.

        Raises:
            DialogOpened: a dialog came up; look at it.
            BrowserError: the infrastructure failed.
        """
        if self.dialogs.waiting is not None:
            raise DialogOpened
        for attempt in range(1, ATTEMPTS + 1):
            try:
                tab = await self.tabs.front()
                await self.dialogs.race(self._loaded(tab))
                await self.dialogs.race(self._settled(tab))
                await self.dialogs.race(self.tabs.all_opened())
                if tab is await self.tabs.front() and not await self.tabs.given_up(tab):
                    return
            except NavigatedAway:
                if attempt == ATTEMPTS:
                    raise

    async def look(self) -> View:
        """Read the page in front, or the dialog.

        Raises:
            BrowserError: the infrastructure failed.
        """
        for attempt in range(1, ATTEMPTS + 1):
            tab = await self.tabs.front()
            if self.dialogs.waiting is not None:
                return View(self.dialogs.waiting.text(), tab.page.url)
            try:
                seen = await self.dialogs.race(view.read(tab, self._viewport[1]))
                seen.text = _with_alerts(seen.text, self.dialogs.alerts())
                return seen
            except DialogOpened:
                continue
            except NavigatedAway:
                if attempt == ATTEMPTS:
                    raise
                await self.dialogs.race(self._loaded(tab))
        raise BrowserError("the page opens one dialog after another")

    async def _loaded(self, tab: Tab) -> None:
        """Wait for the document of a tab."""
        from playwright.async_api import TimeoutError

        try:
            await self.browser.call(
                tab.page.wait_for_load_state("domcontentloaded", timeout=LOADING_MS)
            )
        except TimeoutError:
            return  # read as far as it has come
        if tab.page.url.startswith("chrome-error:") and len(self.tabs) == 1:
            raise BrowserError("the site does not respond")

    async def _settled(self, tab: Tab) -> None:
        if len(self.tabs) == 1 or tab.page.url not in BLANK:
            return await view.settle(tab)
        try:
            await asyncio.wait_for(view.settle(tab), NEW_TAB_S)
        except TimeoutError:
            # Chromium opens no document for `data:` or `mailto:`, and Playwright waits for one.
            await self.tabs.refuse(tab, "the new tab has no page")

    async def _perform(self, tab: Tab, action: Action) -> None:
        try:
            await actions.perform(tab, action)
        except ActionRefused as refusal:
            if str(refusal) != actions.IS_FILE_INPUT:
                raise
            await actions.choose_file(tab, action, self._files)
        except NavigatedAway:
            if not tab.page.is_closed():  # an action that closes its page is done
                raise

    async def _navigate(self, navigation: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await self.browser.call(navigation)
        except BrowserError as error:
            if "ERR_ABORTED" in str(error):  # a download, or refused: told by other means
                return None
            raise

    async def _go_back(self, tab: Tab) -> None:
        history = await tab.send("Page.getNavigationHistory")
        index = history["currentIndex"]
        if index > 0 and self._origins.has(history["entries"][index - 1]["url"]):
            await self._navigate(tab.page.go_back(wait_until="commit"))
        elif len(self.tabs) > 1:
            await self.browser.call(tab.page.close())
        else:
            raise ActionRefused("there is no page to go back to")


def _with_alerts(text: str, alerts: list[str]) -> str:
    first, newline, rest = text.partition("\n")
    lines = [first, *(f"\talert {one_line(alert)!r}" for alert in alerts)]
    return "\n".join(lines) + newline + rest
