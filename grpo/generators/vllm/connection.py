"""The HTTP connections to one vLLM server, and which of its failures pass."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm.lease import RUN_HEADER
from grpo.safe_output import one_line

POLL_SECONDS = 0.5
ATTEMPTS = 3
"""How often a request is made that a healthy server responds to with an internal error."""


class ServerUnavailable(Exception):
    """The server does not respond, or no longer has the policy."""


class ServerConnection:
    """Makes a run's requests to one server.

    Attributes:
        url: the server's address.
    """

    def __init__(self, url: str, timeout_s: float, run: str) -> None:
        """Prepare the connections; the first request connects.

        Args:
            url: address of the server.
            timeout_s: seconds that a response may take.
            run: id of the run that makes the requests.

        Raises:
            ConfigError: the address is none.
        """
        self.url = url.rstrip("/")
        with self._address_errors():
            self._client = httpx.AsyncClient(
                base_url=self.url,
                headers={RUN_HEADER: run},
                timeout=httpx.Timeout(timeout_s, connect=5.0, pool=None),
                limits=httpx.Limits(max_connections=None),
            )

    async def request(
        self, method: str, path: str, *, attempts: int = ATTEMPTS, **options: Any
    ) -> httpx.Response:
        """Make a request, and make it again if a healthy server reports an internal error.

        Args:
            method: GET, POST or DELETE.
            path: path of the address.
            attempts: how often at most.
            options: of httpx's request.

        Returns:
            The response; after the last attempt also an internal error.

        Raises:
            ServerUnavailable: the server does not respond, is not healthy, or was restarted.
            GeneratorError: the server belongs to another run.
        """
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(POLL_SECONDS)
            response = await self._send(method, path, **options)
            if response.status_code != 500:
                break
            try:
                await self.check_health()
            except ServerUnavailable as error:
                failure = f"HTTP 500 from {path}: {reason(response)}"
                raise ServerUnavailable(failure) from error
        if response.status_code == 409:
            self._raise_refusal(response)
        return response

    async def require(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Make a request that must succeed (see `request`).

        Raises:
            ServerUnavailable: as of `request`.
            GeneratorError: the server rejects the request, or belongs to another run.
        """
        response = await self.request(method, path, **options)
        self.require_success(response)
        return response

    def require_success(self, response: httpx.Response) -> None:
        """Raise GeneratorError for an error response."""
        if not response.is_success:
            path = response.request.url.path
            raise GeneratorError(
                f"vLLM at {self.url} responds to {path} with HTTP {response.status_code}: "
                f"{reason(response)}. Was it started by grpo serve-vllm, with this run's options?"
            )

    def field(self, response: httpx.Response, name: str) -> Any:
        """Return a field of a response, which must be a JSON object with it.

        Raises:
            GeneratorError: it is not: this is no server of vLLM's.
        """
        try:
            return response.json()[name]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            path = response.request.url.path
            raise GeneratorError(
                f"vLLM at {self.url} responds to {path} without {name!r}: "
                f"{reason(response)[:200]}. Is this a server that grpo serve-vllm started?"
            ) from error

    async def check_health(self) -> None:
        """Check that the server responds and that its engine works.

        Raises:
            ServerUnavailable: it does not.
        """
        health = await self._send("GET", "/health")
        if not health.is_success:
            raise ServerUnavailable(f"HTTP {health.status_code} from /health: {reason(health)}")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            with self._address_errors():
                response = await self._client.request(method, path, **options)
        except httpx.RequestError as error:
            raise ServerUnavailable(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in (502, 503, 504):
            raise ServerUnavailable(f"HTTP {response.status_code} from {path}: {reason(response)}")
        return response

    @contextmanager
    def _address_errors(self) -> Iterator[None]:
        """Raise ConfigError where the server's name cannot be one."""
        try:
            yield
        except (httpx.InvalidURL, UnicodeError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"vllm_url {self.url!r} is not an address: {text}") from error

    def _raise_refusal(self, response: httpx.Response) -> None:
        """Raise the error of a request without the server's lease."""
        try:
            holder = response.json()["holder"]
        except (ValueError, KeyError, TypeError):
            return  # a conflict of another kind
        if holder is None:
            raise ServerUnavailable("it was restarted and has lost the policy")
        raise GeneratorError(
            f"vLLM at {self.url} belongs to another run, {one_line(holder)}: a server serves one "
            "run at a time. End that run or restart the server, or give each run a server of its "
            "own (--vllm-url)"
        )


def reason(response: httpx.Response) -> str:
    """Shorten an error response to one line."""
    return one_line(" ".join(response.text.split())[:500])
