"""A small web site on a port of 127.0.0.1 for tests of pages, which notes what it is asked."""

from __future__ import annotations

import html
import json
import mimetypes
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

DEADLINE_S = 30.0


class SiteServer:
    """Serves a folder, and some paths that a folder cannot.

    - `/echo`: the method and the fields of a form as text.
    - `/json?after=MS`: the fields of the query as JSON, after so many milliseconds.
    - `/redirect?to=ADDRESS`: status 302.
    - `/attachment/NAME`: a download.
    - `/never`: the request is read, and nothing comes until the server is closed.
    - `/held`: nothing until `release`.
    - `/html?...`: the rest of the address as a page.
    - `/refresh?to=ADDRESS`: a page with a header `Refresh`.
    - `/csp?ADDRESS`: a page that breaks its policy, which is to be reported to the address.
    - `/cached`: the number of such requests so far, to be kept for an hour.

    In pages and scripts `{{name}}` stands for `names[name]`.

    Args:
        folder: the folder; None for a site without files.
        host: the address to listen on.

    Attributes:
        names: what stands in them instead of `{{name}}`.
        requests: a line per request, such as `GET /echo?q=1`, with the body of a POST after it.
        connections: number of connections so far, with and without a request.
    """

    def __init__(self, folder: Path | None = None, *, host: str = "127.0.0.1"):
        self.names: dict[str, str] = {}
        self.requests: list[str] = []
        self.connections = 0
        self._folder = folder
        self._closed = threading.Event()
        self._released = threading.Event()
        self._asked = threading.Condition()
        self._server = _server_class(host)((host, 0), _handler(self))
        self.port: int = self._server.server_address[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.names |= {"site": self.url, "localhost": f"http://localhost:{self.port}"}
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._closed.set()
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> SiteServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, path: str) -> bytes | None:
        """Return a file with its names filled in, or None."""
        file = self._folder and self._folder / path.lstrip("/")
        if not file or ".." in path or not file.is_file():
            return None
        content = file.read_bytes()
        return self.fill(content) if file.suffix in (".html", ".js") else content

    def fill(self, content: bytes) -> bytes:
        """Return a page with its names filled in."""
        for name, value in self.names.items():
            content = content.replace(b"{{%s}}" % name.encode(), value.encode())
        return content

    def ask(self, request: str) -> None:
        """Note a request."""
        with self._asked:
            self.requests.append(request)
            self._asked.notify_all()

    def wait_for(self, request: str) -> None:
        """Block until a request has come.

        Raises:
            TimeoutError: it did not come in time.
        """
        with self._asked:
            if not self._asked.wait_for(lambda: request in self.requests, DEADLINE_S):
                raise TimeoutError(f"no {request} within {DEADLINE_S:g} s")

    def release(self) -> None:
        """Let what is held go on."""
        self._released.set()

    def wait_until_released(self) -> None:
        """Block until `release` or `close`."""
        self._released.wait()

    def wait_until_closed(self) -> None:
        """Block until `close`."""
        self._closed.wait()


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Keep a client that left early off standard error."""

    return Server


def _handler(site: SiteServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            site.connections += 1
            super().setup()

        def do_GET(self) -> None:
            self._respond("")

        def do_POST(self) -> None:
            self._respond(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())

        def _respond(self, body: str) -> None:
            site.ask(f"{self.command} {self.path} {body}".rstrip())
            url = urlsplit(self.path)
            fields = dict(parse_qsl(url.query))
            if url.path == "/echo":
                words = " ".join(f"{k}={v}" for k, v in {**fields, **dict(parse_qsl(body))}.items())
                text = html.escape(f"{self.command} {words}")
                self._send(f"<!doctype html><title>Echo</title><h1>{text}</h1>".encode())
            elif url.path == "/json":
                time.sleep(int(fields.pop("after", 0)) / 1000)
                self._send(json.dumps(fields).encode(), "application/json")
            elif url.path == "/redirect":
                self._send(b"", Location=self.path.partition("to=")[2], status=302)
            elif url.path.startswith("/attachment/"):
                self._send(b"%PDF-1.4", "application/pdf", **{"Content-Disposition": "attachment"})
            elif url.path == "/held":
                site.wait_until_released()
                self._send(b"")
            elif url.path == "/never":
                site.wait_until_closed()
            elif url.path == "/html":
                self._send(site.fill(unquote(url.query).encode()))
            elif url.path == "/refresh":
                self._send(b"", Refresh=f"0; url={self.path.partition('to=')[2]}")
            elif url.path == "/csp":
                policy = f"default-src 'self'; report-uri {url.query}"
                self._send(b"<img src=data:>", **{"Content-Security-Policy": policy})
            elif url.path == "/cached":
                number = sum(request.startswith("GET /cached") for request in site.requests)
                self._send(str(number).encode(), **{"Cache-Control": "max-age=3600"})
            elif (content := site.file(url.path)) is not None:
                kind = mimetypes.guess_type(url.path)[0] or "text/plain"
                self._send(content, "text/javascript" if url.path.endswith("mjs") else kind)
            else:
                self._send(b"not found", "text/plain", status=404)

        def _send(
            self, content: bytes, kind: str = "text/html", *, status: int = 200, **headers: str
        ) -> None:
            self.send_response(status)
            charset = "; charset=utf-8" if kind.startswith("text/") else ""
            headers = {"Content-Type": kind + charset, "Cache-Control": "no-store", **headers}
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep standard error quiet."""

    return Handler
