"""A page in a browser context of its own: navigation, scripts and input events."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from envs.browser.actions import Action
from envs.browser.server.cdp import actions
from envs.browser.server.cdp.chromium import Chromium
from envs.browser.server.errors import ActionRefused, BrowserError, NavigatedAway, evaluated
from envs.browser.server.page_script import VIEWPORT, page_script

# Parts of Chromium's error when a page navigated while a script ran in it.
_NAVIGATED = (
    "navigated or closed",
    "context was destroyed",
    "Cannot find default execution context",
)


class Page:
    """One page, with `page.js` in it. Every method raises BrowserError if the browser is gone.

    Args:
        browser: Chromium to open the page in.
        allowed: prefix of the addresses that the page may show; others are blocked.

    Attributes:
        mouse: position of the pointer, in pixels of the page.
    """

    def __init__(self, browser: Chromium, allowed: str):
        self.browser = browser
        self.allowed = allowed
        self.mouse = (0.0, 0.0)
        self._context = self._target = self._loader = ""
        self._complete = False
        self._event = asyncio.Event()

    async def open(self) -> None:
        """Open the context and its page."""
        send = self.browser.send
        context = await send("Target.createBrowserContext", {"disposeOnDetach": True})
        self._context = context["browserContextId"]
        page = {"url": "about:blank", "browserContextId": self._context}
        page = await send("Target.createTarget", page)
        attached = await send("Target.attachToTarget", {"flatten": True, **page})
        self._target = attached["sessionId"]
        self.browser.listen(self._target, self._on_event)
        await asyncio.gather(
            self.send("Page.enable"),
            self.send("Inspector.enable"),
            self.send("Emulation.setDeviceMetricsOverride",
                       **VIEWPORT, deviceScaleFactor=1, mobile=False),
            # The page behaves as if it had the focus, as do the other pages of this browser.
            self.send("Emulation.setFocusEmulationEnabled", enabled=True),
            self.send("Page.addScriptToEvaluateOnNewDocument", source=page_script()),
            self.send("Fetch.enable", patterns=[{"urlPattern": "*", "resourceType": "Document"}]),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the context and its page."""
        self.browser.listen(self._target, None)
        if self._context and self.browser.alive:
            context = {"browserContextId": self._context}
            await self.browser.send("Target.disposeBrowserContext", context)

    async def goto(self, url: str) -> None:
        """Open an address with the pointer at (0, 0), and wait for its load event."""
        if self.mouse != (0.0, 0.0):
            self.mouse = (0.0, 0.0)
            await self.mouse_events({"type": "mouseMoved"})
        response = await self.send("Page.navigate", url=url)
        if "errorText" in response:
            raise BrowserError(f"cannot open {url}: {response['errorText']}")
        while not (self._complete and self._loader == response["loaderId"]):
            await self._wait_for_event()

    async def loaded(self) -> None:
        """Wait for the load event of the page that is loading."""
        while not self._complete:
            await self._wait_for_event()

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript and return its value, awaited if it is a promise.

        Args:
            expression: JavaScript whose value can be written as JSON.

        Raises:
            NavigatedAway: the page navigated in the meantime.
            BrowserError: the expression threw.
        """
        try:
            response = await self.send(
                "Runtime.evaluate",
                expression=expression,
                awaitPromise=True,
                returnByValue=True,
                userGesture=True,
            )
        except BrowserError as error:
            if any(words in str(error) for words in _NAVIGATED):
                raise NavigatedAway(str(error)) from None
            raise
        return evaluated(response)

    async def call(self, function: str, *args: Any) -> dict[str, Any]:
        """Call one of the functions that `page.js` lists in `functions`, and return its result.

        Raises:
            ActionRefused: the page does not allow the action; the message says why.
        """
        arguments = json.dumps([function, *args])[1:-1]
        result: dict[str, Any] = await self.run(f"browserServer.call({arguments})")
        if "refused" in result:
            raise ActionRefused(result["refused"])
        return result

    async def perform(self, action: Action) -> None:
        """Execute an action; see `envs.browser.server.cdp.actions.perform`."""
        await actions.perform(self, action)

    async def tree(self) -> dict[str, Any]:
        """Return the accessibility tree of a marked page, and remove the marks."""
        tree = self.send("Accessibility.getFullAXTree")
        unmarked = self.run("browserServer.unmark()")
        found: dict[str, Any] = (await asyncio.gather(tree, unmarked))[0]
        return found

    async def screenshot(self) -> str:
        """Return a picture of the page, a PNG as base64."""
        return str((await self.send("Page.captureScreenshot", format="png"))["data"])

    async def mouse_events(self, *events: dict[str, Any]) -> None:
        """Send mouse events at the position of the pointer.

        Args:
            events: parameters of `Input.dispatchMouseEvent`, without the position.
        """
        x, y = self.mouse
        method = "Input.dispatchMouseEvent"
        await asyncio.gather(*(self.send(method, **{"x": x, "y": y, **event}) for event in events))

    async def key_events(self, events: list[dict[str, Any]]) -> None:
        """Send key events as `keyboard.events` returns them."""
        await asyncio.gather(*(self.send("Input.dispatchKeyEvent", **event) for event in events))

    def send(self, method: str, **parameters: Any) -> asyncio.Future[dict[str, Any]]:
        """Send a command to the page; see `Chromium.send`."""
        return self.browser.send(method, parameters, target=self._target)

    def _on_event(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Page.frameNavigated" and "parentId" not in parameters["frame"]:
            self._loader, self._complete = parameters["frame"]["loaderId"], False
        elif method == "Page.loadEventFired":
            self._complete = True
        elif method == "Page.javascriptDialogOpening":
            # As Playwright: leave a page that asks to be left alone, dismiss every other dialog.
            leave = parameters.get("type") == "beforeunload"
            self.send("Page.handleJavaScriptDialog", accept=leave)
        elif method == "Fetch.requestPaused":
            self._admit(parameters["requestId"], parameters["request"]["url"])
        elif method == "Inspector.targetCrashed":
            self.browser.page_is_gone(self._target, "the page crashed")
        self._event.set()

    def _admit(self, request: str, url: str) -> None:
        if url.startswith(self.allowed):
            self.send("Fetch.continueRequest", requestId=request)
        else:
            self.send("Fetch.failRequest", requestId=request, errorReason="BlockedByClient")

    async def _wait_for_event(self) -> None:
        self._event.clear()
        await self._event.wait()
