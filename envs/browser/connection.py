"""The connection to a server: address and token of a Hugging Face Space, OpenEnv's client."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from envs.browser.foreign_text import brief, one_line
from envs.browser.limits import MAX_KEYS, MAX_LISTS, MAX_RESPONSE

RETRY_S = 1.0

_SPACE_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/spaces/([^/?#]+/[^/?#]+)")
_STARTING = {502, 503, 504}
_HIDDEN = {401, 403, 404}
_REDIRECTS = range(300, 400)


def server_url(address: str) -> str:
    """Return the address of the server behind a Space's page; other addresses stay unchanged.

    `https://huggingface.co/spaces/Owner/my_env` is served at `https://owner-my-env.hf.space`.
    """
    page = _SPACE_PAGE.match(address)
    if page is None:
        return address
    return f"https://{re.sub('[^a-z0-9]', '-', page[1].lower())}.hf.space"


def token_headers(url: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the header that gives the owner of HF_TOKEN access to a private Space.

    The token is sent to Spaces over https and to this machine, nowhere else. It is sent as
    `X-HF-Authorization`, which Hugging Face's proxy removes: an `Authorization` header would
    reach the program in the Space, whoever wrote it.

    Args:
        url: address of the server.
        environ: environment variables, of which HF_TOKEN is read.
    """
    address = urlsplit(url)
    host, token = address.hostname or "", environ.get("HF_TOKEN", "").strip()
    is_space = address.scheme in ("https", "wss") and host.endswith(".hf.space")
    if not token or not (is_space or _is_local(host)):
        return {}
    return {"X-HF-Authorization": f"Bearer {token}"}


@cache
def client_class() -> type:
    """Return OpenEnv's client, with actions as text and responses as dicts.

    It connects once: OpenEnv's own client would follow redirects, with the token, and would
    replace a lost session by a new one that was never reset. It reads messages in a thread, up to
    `MAX_RESPONSE` bytes, and leaves deadlines to its caller.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        from openenv.core.env_client import EnvClient  # takes seconds: it loads a web UI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "BrowserEnv needs the package openenv (extra `browser`): run `make setup`"
        ) from error

    class BrowserGymClient(EnvClient):
        _ws: Any

        def _step_payload(self, action: str) -> dict[str, Any]:
            return {"action_str": action}

        def _parse_result(self, payload: dict[str, Any]) -> Any:
            return payload

        def _parse_state(self, payload: dict[str, Any]) -> Any:
            return payload

        async def _connect_async(self) -> EnvClient:
            if self._ws is None:
                self._ws = await _open_socket(
                    str(self._ws_url), self._headers, self._connect_timeout
                )
                self._ws_loop = asyncio.get_running_loop()
            return self

        async def _receive(self) -> dict[str, Any]:
            return await asyncio.to_thread(read_message, await self._ws.recv())

    return BrowserGymClient


def read_message(raw: str | bytes) -> dict[str, Any]:
    """Parse one of OpenEnv's messages.

    Raises:
        ValueError: it is not such a message.
        ServerError: it reports an error of the server.
    """
    text = raw if isinstance(raw, str) else raw.decode()
    for mark, limit, name in (("[", MAX_LISTS, "lists"), ('":', MAX_KEYS, "fields")):
        if text.count(mark) > limit:
            raise ValueError(f"its response may have {limit} {name}, got {text.count(mark)}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its response is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ValueError(f"its response is not an OpenEnv message: {brief(message)}")
    if message.get("type") == "error":
        data = message.get("data")
        reason, code = map(data.get, ("message", "code")) if isinstance(data, dict) else (data, "")
        reason = reason if isinstance(reason, str) else brief(reason)
        raise ServerError(f"{reason} (code: {code})" if isinstance(code, str) and code else reason)
    return message


class ServerError(RuntimeError):
    """The server reports an error; the message is the server's."""


def describe_failure(error: Exception) -> str:
    """Describe in one line why an exchange with a server failed."""
    from websockets.exceptions import ConnectionClosed

    if isinstance(error, ConnectionClosed):
        return one_line(f"it closed the connection: {error}")
    if isinstance(error, ValueError | ServerError):
        return one_line(str(error))
    return one_line(f"{type(error).__name__}: {error}")


def _refusal(status: int, headers: Mapping[str, str]) -> str:
    response = f"it responded with HTTP {status}"
    if status in _STARTING:
        return f"{response} until the deadline: it is down, or a Space that sleeps or starts"
    if status in _HIDDEN:
        return f"{response}: nothing is served there, or it is a private Space and needs HF_TOKEN"
    if status in _REDIRECTS:
        return f"{response}, a redirect to {headers.get('Location')}: use that address"
    return f"{response} and no WebSocket: is this the address of a browser server?"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _open_socket(url: str, headers: Mapping[str, str] | None, deadline_s: float) -> Any:
    """Open a WebSocket; retry until `deadline_s` is over while the host says it is starting."""
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus

    class Connect(connect):
        def process_redirect(self, exc: Exception) -> Exception:
            return exc

    end = time.monotonic() + deadline_s
    options: dict[str, Any] = {"proxy": None} if _is_local(urlsplit(url).hostname or "") else {}
    while True:
        try:
            return await Connect(
                url,
                additional_headers=headers,
                max_size=MAX_RESPONSE,
                open_timeout=None,  # the caller has its own deadline
                ping_interval=None,  # and it notices a dead server
                **options,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status not in _STARTING or time.monotonic() + RETRY_S >= end:
                raise ConnectionError(_refusal(status, error.response.headers)) from error
        except (OSError, InvalidHandshake) as error:
            reason = str(error) or type(error).__name__  # TLS that ends in the middle has no text
            raise ConnectionError(f"no connection: {reason}") from error
        await asyncio.sleep(RETRY_S)
