"""Which addresses a site's pages may reach: its own origin, and those that the task allows."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

_PORTS = {"http": 80, "https": 443}
_WITHOUT_NETWORK = ("about:", "blob:", "data:")


class Origins:
    """A set of origins.

    Args:
        addresses: addresses of the origins; their paths do not matter.
    """

    def __init__(self, addresses: Iterable[str]):
        self._origins = {_origin(address) for address in addresses} - {None}

    def admits(self, url: str) -> bool:
        """Return True if a document may be loaded from this address."""
        return url.startswith(_WITHOUT_NETWORK) or _origin(url) in self._origins

    def has(self, url: str) -> bool:
        """Return True if the address has one of the origins."""
        return _origin(url) in self._origins

    def proxy(self) -> dict[str, Any]:
        """Return Playwright's option of a proxy that refuses every connection but to the origins.

        Chromium asks the proxy for whatever a page loads, wherever it is told to: redirects,
        frames, new tabs, scripts, WebSockets. It reaches the origins without it.
        """
        rules = ["<-loopback>"]  # else every address of this machine would be reached directly
        for scheme, host, port in sorted(origin for origin in self._origins if origin):
            socket_scheme = {"http": "ws", "https": "wss"}[scheme]
            rules += [f"{scheme}://{host}:{port}", f"{socket_scheme}://{host}:{port}"]
            # For the requests that a task makes itself (`context.request`): Playwright compares the
            # ends of host names, and no port. To Chromium this is another host's name.
            rules.append(host.rpartition(".")[2] if "." in host else f".{host}")
        return {"server": f"http://127.0.0.1:{_closed_port()}", "bypass": ",".join(rules)}


def _origin(url: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme]


@cache
def _closed_port() -> int:
    """Return a port of 127.0.0.1 that refuses connections as long as this process runs."""
    _reserved.bind(("127.0.0.1", 0))  # and never listens
    return int(_reserved.getsockname()[1])


_reserved = socket.socket()
