"""A server with OpenAI's HTTP API whose responses a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"data": [{"id": "small"}]}
SILENCE = "(silence)"
"""A response that does not come."""


def said(text: Any, finish: str = "stop") -> dict[str, Any]:
    """Return a response of the chat API."""
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": finish}]}


def completed(text: str, ids: Any = None, finish: str = "stop") -> dict[str, Any]:
    """Return a response of the completions API."""
    return {"choices": [{"text": text, "token_ids": ids, "finish_reason": finish}]}


class OpenAIResponses:
    """Gives the next response of a path to each request; the last one again and again.

    A response is an object, `(status, object or text, headers)`, or a function of the request's
    body that returns one of these.

    Attributes:
        url: the server's address.
        requests: path, headers and body of each request.
    """

    def __init__(self, url: str, responses: dict[str, Any]) -> None:
        self.url, self.responses = url, responses
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    def respond(self, path: str, headers: dict[str, str], body: Any) -> tuple[int, str, Any]:
        """Return status, text and headers of the response to a request."""
        self.requests.append((path, headers, body))
        given = self.responses.get(path, (404, "nothing here", {}))
        if isinstance(given, list):
            given = given.pop(0) if len(given) > 1 else given[0]
        given = given(body) if callable(given) else given
        status, content, more = given if isinstance(given, tuple) else (200, given, {})
        return status, content if isinstance(content, str) else json.dumps(content), more

    def bodies(self, path: str) -> list[Any]:
        """Return what was sent to a path."""
        return [body for asked, _, body in self.requests if asked == path]


@contextmanager
def serving(responses: dict[str, Any]) -> Iterator[OpenAIResponses]:
    """Serve responses by path on a port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self, body: Any = None) -> None:
            status, content, more = server.respond(self.path, dict(self.headers), body)
            if content == SILENCE:
                ended.wait()
                return
            self.send_response(status)
            for name, value in {**more, "Content-Length": len(content.encode())}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content.encode())

        def do_POST(self) -> None:
            self.do_GET(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: object) -> None:
            pass

    ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads, http.block_on_close = True, False
        server = OpenAIResponses(f"http://127.0.0.1:{http.server_address[1]}/v1", responses)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            ended.set()
            http.shutdown()
