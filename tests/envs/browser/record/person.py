"""A person at the recorded browser: real input events by a DevTools connection of their own."""

import asyncio
import itertools
import json
import urllib.request

from websockets.asyncio.client import connect

BAR = "What to do"
CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "F8": 119, "F9": 120, "ArrowDown": 40, "a": 65}


class Person:
    """Acts in the newest page of a Chromium.

    Args:
        port: of its DevTools.
    """

    def __init__(self, port):
        self.port = port
        self._socket = None
        self._ids = itertools.count(1)

    async def sit_down(self, *, at_bar=False):
        """Connect to the page, or to the window with the goal."""
        await self.leave()
        with await asyncio.to_thread(
            urllib.request.urlopen, f"http://127.0.0.1:{self.port}/json"
        ) as list_:
            pages = [page for page in json.load(list_) if page["type"] == "page"]
        page = next(page for page in pages if (page["title"] == BAR) == at_bar)
        self._socket = await connect(page["webSocketDebuggerUrl"], max_size=None)

    async def leave(self):
        if self._socket is not None:
            await self._socket.close()

    async def send(self, method, until="", **params):
        """Send a command; return its result, or None at the event `until`."""
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(await self._socket.recv())
            if until and message.get("method") == until:
                return None
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def run(self, expression):
        """Evaluate JavaScript in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        result = await self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def where(self, element):
        """Return the middle of an element, given as an expression, or of a text's element."""
        return await self.run(f"""(() => {{
            const {{ x, y, width, height }} = ({element}).getBoundingClientRect();
            return [x + width / 2, y + height / 2];
        }})()""")

    async def click(self, element, count=1, button="left"):
        await self.click_at(*await self.where(element), count, button)

    async def click_at(self, x, y, count=1, button="left"):
        for n in range(1, count + 1):
            await self._mouse("mousePressed", x, y, button=button, buttons=1, clickCount=n)
            await self._mouse("mouseReleased", x, y, button=button, clickCount=n)

    async def point_at(self, element):
        await self._mouse("mouseMoved", *await self.where(element))

    async def open_dialog(self, element):
        """Click on what opens a dialog, and return when it is there."""
        x, y = await self.where(element)
        await self.send("Page.enable")
        await self._mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        mouse = {"type": "mouseReleased", "x": x, "y": y, "button": "left", "clickCount": 1}
        await self.send("Input.dispatchMouseEvent", until="Page.javascriptDialogOpening", **mouse)

    async def drag(self, source, target):
        (x, y), (to_x, to_y) = await self.where(source), await self.where(target)
        await self._mouse("mouseMoved", x, y)
        await self._mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        for part in (0.1, 0.5, 0.9, 1):
            at = x + part * (to_x - x), y + part * (to_y - y)
            await self._mouse("mouseMoved", *at, button="left", buttons=1)
        await self._mouse("mouseReleased", to_x, to_y, button="left", clickCount=1)

    async def scroll(self, element, pixels, below=0):
        x, y = await self.where(element)
        y = min(max(y + below, 10), 500)  # of an element that is higher than the window
        await self._mouse("mouseWheel", x, y, deltaX=0, deltaY=pixels)

    async def type(self, text):
        for char in text:
            await self.send("Input.dispatchKeyEvent", type="keyDown", key=char, text=char)
            await self.send("Input.dispatchKeyEvent", type="keyUp", key=char)

    async def key(self, key, modifiers=0):
        code = {"windowsVirtualKeyCode": CODES[key], "code": key, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **code, **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    async def _mouse(self, kind, x, y, **options):
        await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)


def named(name):
    """Return the expression of the first element with this text, label or value."""
    return f"""[...document.querySelectorAll("a, button, input, select, textarea")].find(
        (e) => [e.getAttribute("aria-label"), e.labels?.[0]?.innerText, e.innerText]
            .some((text) => text?.trim().split("\\n")[0].trim() === {json.dumps(name)}))"""
