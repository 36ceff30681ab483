"""A limit on the body of HTTP requests, which FastAPI would read into memory whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DISCARD_S = 5.0
"""Seconds for which the rest of a body is read and dropped: a client that is still sending would
see a broken connection instead of the response."""


class BodyLimit:
    """ASGI middleware that responds with 413 to a request whose body is too large.

    Args:
        app: receives the other requests, each with its whole body as one message.
        limit: largest body in bytes.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], limit: int):
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection; only HTTP requests have a body."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body, more = bytearray(), True
        while more and len(body) <= self._limit:
            message = await receive()
            if message["type"] != "http.request":
                return None  # the client is gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > self._limit:
            return await self._refuse(receive, send, more)
        messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        return await self._app(scope, receive_again, send)

    async def _refuse(self, receive: Receive, send: Send, more: bool) -> None:
        try:
            async with asyncio.timeout(DISCARD_S):
                while more:
                    more = (await receive()).get("more_body", False)
        except TimeoutError:
            more = False  # it has had its time
        detail = f"a request may have {self._limit} bytes"
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"detail": detail}).encode()})
