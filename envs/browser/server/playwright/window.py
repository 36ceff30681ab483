"""The browser window of an episode: a context of its own with its tabs, dialogs and refusals."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin

from envs.browser.actions import Action
from envs.browser.foreign_text import one_line
from envs.browser.server.errors import ActionRefused, BrowserError, NavigatedAway
from envs.browser.server.page_script import page_script
from envs.browser.server.playwright import actions, view
from envs.browser.server.playwright.browser import PlaywrightChromium, spare_stack
from envs.browser.server.playwright.dialog import Dialog
from envs.browser.server.playwright.origins import Origins
from envs.browser.server.playwright.tab import Tab
from envs.browser.server.playwright.view import View

TIMEOUT_MS = 10_000
NAVIGATION_MS = 20_000
LOADING_MS = 5_000
ATTRIBUTE = f"bid-{secrets.token_hex(4)}"  # that no page has
BLANK = ("", ":", "about:blank")
NEW_TAB_S = 3.0
POLL_S = 0.02
ATTEMPTS = 5  # at reading a page that keeps navigating
Result = TypeVar("Result")


class DialogOpened(Exception):
    """A dialog came up, and the page does nothing until it is answered."""


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
        interactive: True if confirm and prompt wait for an action; otherwise they are accepted.
        dialog: the dialog that waits, if there is one.
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
        self.interactive = False
        self.dialog: Dialog | None = None
        self._origins = origins
        self._viewport = viewport
        self._files = files
        self._cookies = cookies
        self._options = options
        self._context: Any = None
        self._tabs: list[Tab] = []
        self._opening: dict[Tab, asyncio.Future[None]] = {}
        self._alerts: list[str] = []
        self._refusals: list[str] = []
        self._outside: list[str] = []  # addresses of documents that were asked for and refused
        self._opened = asyncio.Event()
        self._pending: asyncio.Future[Any] | None = None

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
        self._context.on("page", self._on_page)
        self._context.on("dialog", self._on_dialog)
        self._context.on("request", self._on_request)
        await call(self._context.add_init_script(page_script(ATTRIBUTE)))
        if self._cookies:
            await call(self._context.add_cookies(self._cookies))
        await call(self._context.new_page())
        await self.front()

    async def close(self) -> None:
        """Close the context with all that it holds."""
        if self._pending is not None:
            self._pending.cancel()
        if self._context is not None and self.browser.alive:
            await self.browser.call(self._context.close())

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

    async def act(self, action: Action) -> None:
        """Execute an action.

        Raises:
            ActionRefused: the page or the task does not allow it.
            DialogOpened: a dialog came up; look at it.
            BrowserError: the infrastructure failed.
        """
        tab = await self.front()
        if self.dialog is not None:
            self.dialog.act(action)
            if not self.dialog.answered:
                raise DialogOpened
            answer, self.dialog = self.dialog.answer(), None
            self._opened.clear()
            pending, self._pending = self._pending, None
            await self._race(self._both(answer, pending))
        elif action.name == "goto":
            url = urljoin(tab.page.url, str(action.args[0]))
            if not self._origins.has(url):
                raise ActionRefused(_outside(url))
            await self._race(self._navigate(tab.page.goto(url, wait_until="commit")))
        elif action.name == "go_back":
            await self._race(self._go_back(tab))
        else:
            await self._race(self._perform(tab, action))

    async def settle(self) -> None:
        """Wait until the effects of the last action are over.

        Raises:
            DialogOpened: a dialog came up; look at it.
            BrowserError: the infrastructure failed.
        """
        if self.dialog is not None:
            raise DialogOpened
        for attempt in range(1, ATTEMPTS + 1):
            try:
                tab = await self.front()
                await self._race(self._loaded(tab))
                await self._race(self._settled(tab))
                await self._race(self._tabs_opened())
                if tab is await self.front() and not await self._given_up(tab):
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
            tab = await self.front()
            if self.dialog is not None:
                return View(self.dialog.text(), tab.page.url)
            try:
                seen = await self._race(view.read(tab, self._viewport[1]))
                alerts, self._alerts = self._alerts, []
                seen.text = _with_alerts(seen.text, alerts)
                return seen
            except DialogOpened:
                continue
            except NavigatedAway:
                if attempt == ATTEMPTS:
                    raise
                await self._race(self._loaded(tab))
        raise BrowserError("the page opens one dialog after another")

    def refusals(self) -> list[str]:
        """Return what was refused since the last call: downloads, and addresses outside."""
        refused = [*self._refusals, *map(_outside, self._outside)]
        self._refusals, self._outside = [], []
        return refused

    async def _loaded(self, tab: Tab) -> None:
        """Wait for the document of a tab."""
        from playwright.async_api import TimeoutError

        try:
            await self.browser.call(
                tab.page.wait_for_load_state("domcontentloaded", timeout=LOADING_MS)
            )
        except TimeoutError:
            return  # read as far as it has come
        if tab.page.url.startswith("chrome-error:") and len(self._tabs) == 1:
            raise BrowserError("the site does not respond")

    async def _settled(self, tab: Tab) -> None:
        if len(self._tabs) == 1 or tab.page.url not in BLANK:
            return await view.settle(tab)
        try:
            await asyncio.wait_for(view.settle(tab), NEW_TAB_S)
        except TimeoutError:
            # Chromium opens no document for `data:` or `mailto:`, and Playwright waits for one.
            self._refusals.append("the new tab has no page")
            await self.browser.call(tab.page.close())

    async def _tabs_opened(self) -> None:
        """Wait until Playwright knows every tab that a page has opened."""
        end = time.monotonic() + LOADING_MS / 1000
        while len(self._opening) <= sum(tab.opened for tab in self._opening):
            if time.monotonic() > end:
                return
            await asyncio.sleep(POLL_S)

    async def _given_up(self, tab: Tab) -> bool:
        """Close a new tab that leads outside of the site, and return True if it did."""
        url = tab.page.url
        failed = url.startswith("chrome-error:") or (url in BLANK and self._outside)
        if len(self._tabs) == 1 or not failed:
            return False
        await self.browser.call(tab.page.close())
        return True

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
        elif len(self._tabs) > 1:
            await self.browser.call(tab.page.close())
        else:
            raise ActionRefused("there is no page to go back to")

    async def _both(self, answer: Coroutine[Any, Any, None], pending: Any) -> None:
        """Answer a dialog, and finish what waited for it."""
        await self.browser.call(answer)
        if pending is not None:
            try:
                await pending
            except NavigatedAway:
                return

    async def _race(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await some work; a dialog that comes up interrupts it, and it goes on when answered."""

        async def unhurried() -> Result:
            spare_stack()
            return await work

        task = asyncio.ensure_future(unhurried())
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            opened.cancel()
        if task.done():
            return task.result()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending = task
        raise DialogOpened

    def _on_page(self, page: Any) -> None:
        tab = Tab(self.browser, page, self._origins.admits, ATTRIBUTE)
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

    def _on_dialog(self, dialog: Any) -> None:
        waits = self.interactive and dialog.type in ("confirm", "prompt")
        if waits:
            self.dialog = Dialog(dialog)
            self._opened.set()
            return
        if dialog.type == "alert":
            self._alerts.append(dialog.message)
        self.browser.run(self._accept(dialog))

    async def _accept(self, dialog: Any) -> None:
        try:
            await self.browser.call(dialog.accept())
        except BrowserError:
            return  # the task's own handler answered it, or its page is gone


def _outside(url: str) -> str:
    return f"{one_line(url, 100)} is outside of the site"


def _with_alerts(text: str, alerts: list[str]) -> str:
    first, newline, rest = text.partition("\n")
    lines = [first, *(f"\talert {one_line(alert)!r}" for alert in alerts)]
    return "\n".join(lines) + newline + rest
