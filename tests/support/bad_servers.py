"""Servers that are none, each on a port of 127.0.0.1: silent, rude, or of another protocol."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_stop = threading.Event()


def _http(status: str, body: str, *headers: str) -> Callable[[socket.socket], None]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    response = "\r\n".join([*lines, "", body]).encode()

    def handle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(response)

    return handle


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _wait(connection: socket.socket) -> None:
    _stop.wait()


HANDLERS: dict[str, Callable[[socket.socket], None]] = {
    "silent": _wait,
    "closing": lambda connection: None,
    "resetting": _reset,
    "garbage": lambda connection: connection.sendall(b"\0\xff" * 100),
    "page": _http("200 OK", "<h1>hello</h1>"),
    "list": _http("200 OK", "[]"),
    "missing": _http("404 Not Found", "nothing"),
    "broken": _http("500 Internal Server Error", "oops"),
    "starting": _http("503 Service Unavailable", "wait"),
    "moved": _http("302 Found", "", "Location: http://127.0.0.1:1/"),
}


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep a client that left early off standard error."""


@contextmanager
def _serving(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            handle(self.request)

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@contextmanager
def bad_servers() -> Iterator[dict[str, str]]:
    """Start all of them; yield `host:port` by name, with "dead" for a port that nobody has."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        with ExitStack() as stack:
            ports = {k: stack.enter_context(_serving(handle)) for k, handle in HANDLERS.items()}
            try:
                yield {"dead": dead} | {k: f"127.0.0.1:{port}" for k, port in ports.items()}
            finally:
                _stop.set()
