"""A page in its own browser context: navigation, scripts and input, one command after another."""

from __future__ import annotations

import asyncio
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from envs.browser.server.cdp.chromium import CDPError, Chromium

VIEWPORT = {"width": 332, "height": 214}
"""Size of the page in pixels: MiniWoB's, as BrowserGym sets it."""

# What Chromium says when a script's page went away under it.
_LEFT = ("navigated or closed", "context was destroyed", "Cannot find default execution context")


class Refused(Exception):
    """The page does not let something happen: the policy's failure, not the machinery's."""


class PageLeft(CDPError):
    """Another page took the place of the one that a script ran in."""


class Page:
    """One page, in which `page.js` answers.

    Every method raises CDPError where the browser or the page is gone.

    Attributes:
        browser: the Chromium it lives in.
        allowed: how every address begins that it may show.
        mouse: where the pointer is, in pixels of the page.
    """

    def __init__(self, browser: Chromium, allowed: str):
        """Describe the page.

        Args:
            browser: where to open it.
            allowed: how every address begins that it may show; others are blocked.
        """
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
            # The page believes that it has the focus, as many others do beside it.
            self.send("Emulation.setFocusEmulationEnabled", enabled=True),
            self.send("Page.addScriptToEvaluateOnNewDocument", source=_page_script()),
            self.send("Fetch.enable", patterns=[{"urlPattern": "*", "resourceType": "Document"}]),
        )  # fmt: skip

    async def close(self) -> None:
        """Close the context and its page."""
        self.browser.listen(self._target, None)
        if self._context and self.browser.alive:
            context = {"browserContextId": self._context}
            await self.browser.send("Target.disposeBrowserContext", context)

    async def goto(self, url: str) -> None:
        """Open an address, the pointer where a new page has it, and wait for its load event."""
        if self.mouse != (0.0, 0.0):
            self.mouse = (0.0, 0.0)
            await self.mouse_events({"type": "mouseMoved"})
        answer = await self.send("Page.navigate", url=url)
        if "errorText" in answer:
            raise CDPError(f"cannot open {url}: {answer['errorText']}")
        while not (self._complete and self._loader == answer["loaderId"]):
            await self._wait_for_event()

    async def loaded(self) -> None:
        """Wait for the load event of whatever page is coming."""
        while not self._complete:
            await self._wait_for_event()

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript and await its value, which JSON can carry.

        Raises:
            PageLeft: the page was left meanwhile.
            CDPError: it threw.
        """
        try:
            answer = await self.send(
                "Runtime.evaluate",
                expression=expression,
                awaitPromise=True,
                returnByValue=True,
                userGesture=True,
            )
        except CDPError as error:
            if any(words in str(error) for words in _LEFT):
                raise PageLeft(str(error)) from None
            raise
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise CDPError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def ask(self, question: str, *args: Any) -> dict[str, Any]:
        """Ask `page.js` one of its questions.

        Raises:
            Refused: the page says no, and why.
        """
        arguments = json.dumps([question, *args])[1:-1]
        answer = await self.run(f"browserServer.ask({arguments})")
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer

    async def mouse_events(self, *events: dict[str, Any]) -> None:
        """Send events of the mouse where the pointer is: kind and options of each."""
        x, y = self.mouse
        method = "Input.dispatchMouseEvent"
        await asyncio.gather(*(self.send(method, **{"x": x, "y": y, **event}) for event in events))

    async def key_events(self, events: list[dict[str, Any]]) -> None:
        """Send what `keyboard.events` returned."""
        await asyncio.gather(*(self.send("Input.dispatchKeyEvent", **event) for event in events))

    def send(self, method: str, **parameters: Any) -> asyncio.Future[dict[str, Any]]:
        """Send the page a command; see `Chromium.send`."""
        return self.browser.send(method, parameters, target=self._target)

    def _on_event(self, method: str, parameters: dict[str, Any]) -> None:
        if method == "Page.frameNavigated" and "parentId" not in parameters["frame"]:
            self._loader, self._complete = parameters["frame"]["loaderId"], False
        elif method == "Page.loadEventFired":
            self._complete = True
        elif method == "Page.javascriptDialogOpening":
            self.send("Page.handleJavaScriptDialog", accept=False)
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


@cache
def _page_script() -> str:
    """`page.js` with BrowserGym's scripts in it."""
    names = {"MARK": "frame_mark_elements.js", "UNMARK": "frame_unmark_elements.js"}
    lines = []
    for constant, file in names.items():
        source = pkgutil.get_data("browsergym.core", f"javascript/{file}")
        assert source is not None
        lines.append(f"const {constant} = {json.dumps(source.decode())};")
    script = Path(__file__).with_name("page.js").read_text()
    return script.replace("(() => {\n", "\n".join(["(() => {", *lines, ""]), 1)
