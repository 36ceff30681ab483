"""Requests to a server with OpenAI's HTTP API, and which of its failures pass."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, Self

import httpx

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.option_values import check_urls, without_secrets
from grpo.safe_output import one_line

API_KEY = "GRPO_API_KEY"
"""The environment variable with the key that servers are sent."""

PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a request is made again, where the server names none."""

MAX_PAUSE_S = 60.0
"""Longest wait that a server may ask for."""

PASSING = {408, 425, 429, 500, 502, 503, 504, 529}
"""Status codes of failures that may pass: overload, limits per minute, restarts."""

_log = logging.getLogger(__name__)


class OpenAIServer:
    """Makes requests to one server; its errors are one line each and never show the key.

    As a context manager its connections are closed at the end of the block.

    Attributes:
        url: the server's address, up to and including "/v1".
    """

    def __init__(self, url: str, *, api_key: str = "", deadline_s: float = 120.0) -> None:
        """Prepare the connections; the first request connects.

        Args:
            url: address, such as `http://127.0.0.1:8000/v1`.
            api_key: sent with every request to this address, and to no other.
            deadline_s: seconds that a response may take.

        Raises:
            ConfigError: the address is none, or the key cannot be sent.
        """
        try:
            check_urls([url], ("http", "https"))
        except ValueError as error:
            raise ConfigError(f"endpoint {error}") from error
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise ConfigError(f"{API_KEY} must be printable ASCII characters without spaces")
        self.url, self._key, self._deadline_s = url.rstrip("/"), api_key, deadline_s
        # httpx follows no redirect by itself: the key stays with this host.
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Make a request, and make it again while its failure may pass.

        Args:
            path: appended to the server's address.
            body: sent by POST as JSON; None for GET.

        Returns:
            The response, parsed as JSON.

        Raises:
            GeneratorError: the server failed each time, refuses the request, or responds with
                something else than JSON.
        """
        response = await self.respond(self.url + path, body)
        if response.is_redirect:
            target = without_secrets(response.headers.get("location", ""))
            raise GeneratorError(
                f"{self.url} redirects to {self.shown(target)}, which is not followed: give the "
                "address itself"
            )
        if not response.is_success:
            raise GeneratorError(f"{self._failure(path, response)}{self._advice(response)}")
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise self.unexpected(path, "JSON", response.text) from error

    async def respond(self, url: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Return the response to a request, whatever it is, unless its failure may pass.

        Raises:
            GeneratorError: no attempt led to a response.
        """
        failure = ""
        for pause in (*PAUSES_S, None):
            try:
                async with asyncio.timeout(self._deadline_s):
                    method = "GET" if body is None else "POST"
                    response = await self._client.request(method, url, json=body)
                if response.status_code not in PASSING:
                    return response
                failure = self._failure(httpx.URL(url).path, response)
                pause = pause and _pause_asked(response, pause)
            except TimeoutError:
                failure = f"{self.url} has not responded within {self._deadline_s:g} s"
            except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
                failure = f"{self.url}: {self.shown(f'{type(error).__name__} {error}')}"
            if pause is not None:
                _log.warning("%s; asking again in %g s", failure, pause)
                await asyncio.sleep(pause)
        raise GeneratorError(f"{failure} (asked {len(PAUSES_S) + 1} times)")

    def unexpected(self, path: str, expected: str, got: object) -> GeneratorError:
        """Return the error of a response that is not what the API says."""
        return GeneratorError(
            f"{self.url} must respond to {path} with {expected}, got {self.shown(got)}"
        )

    def shown(self, text: object) -> str:
        """Return what a server said in one short line, without the key."""
        line = " ".join(str(text).split())
        return one_line(line.replace(self._key, "***") if self._key else line)[:300]

    def _failure(self, path: str, response: httpx.Response) -> str:
        said = self.shown(response.text) or "nothing"
        return f"{self.url} responds to {path} with HTTP {response.status_code}: {said}"

    def _advice(self, response: httpx.Response) -> str:
        if response.status_code in (401, 403):
            return f" ({'check' if self._key else 'set'} {API_KEY})"
        if response.status_code == 404 and not self.url.endswith("/v1"):
            return " (addresses of this API usually end in /v1)"
        return ""


def api_key_from_environment() -> str:
    """Return the key for the server, or an empty text."""
    return os.environ.get(API_KEY, "").strip()


def _pause_asked(response: httpx.Response, default: float) -> float:
    """Return the seconds that the server asks to wait."""
    asked = response.headers.get("retry-after", "")
    return min(float(asked), MAX_PAUSE_S) if asked.isdecimal() else default
