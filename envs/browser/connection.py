"""Servers elsewhere: the address of a Space, the token for a private one, the connection."""

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

RETRY_S = 1.0

_SPACE_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/spaces/([^/?#]+/[^/?#]+)")
_STARTING = {502, 503, 504}
_HIDDEN = {401, 403, 404}
_REDIRECTS = range(300, 400)


def server_url(address: str) -> str:
    """Return the address of the server behind a Space's page; any other stays as it is.

    `https://huggingface.co/spaces/Owner/my_env` is served at `https://owner-my-env.hf.space`.
    """
    page = _SPACE_PAGE.match(address)
    if page is None:
        return address
    return f"https://{re.sub('[^a-z0-9]', '-', page[1].lower())}.hf.space"


def token_headers(url: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the header that opens a private Space to the owner of HF_TOKEN.

    The token goes to Spaces over https and to this machine, nowhere else. It travels as
    `X-HF-Authorization`, which Hugging Face's proxy takes off: an `Authorization` would
    be handed to the program in the Space, whoever wrote it.

    Args:
        url: the server's address.
        environ: where HF_TOKEN is looked for.
    """
    address = urlsplit(url)
    host, token = address.hostname or "", environ.get("HF_TOKEN", "").strip()
    is_space = address.scheme in ("https", "wss") and host.endswith(".hf.space")
    if not token or not (is_space or _is_local(host)):
        return {}
    return {"X-HF-Authorization": f"Bearer {token}"}


@cache
def client_class() -> type:
    """Return OpenEnv's client with actions as text and answers as dicts.

    It connects once: OpenEnv's would follow redirects, with the token, and would connect a
    session that was lost anew, to one that was never reset.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:
        from openenv.core.env_client import EnvClient  # takes seconds: it loads a web UI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "BrowserEnv needs the package openenv: run `make setup`"
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
                    str(self._ws_url), self._headers, self._max_message_size, self._connect_timeout
                )
                self._ws_loop = asyncio.get_running_loop()
            return self

    return BrowserGymClient


def describe(error: Exception) -> str:
    """Say in one line what a failed exchange with a server failed of."""
    from websockets.exceptions import ConnectionClosed

    text = str(error).removeprefix("Server error: ")
    if isinstance(error, json.JSONDecodeError):
        return f"its answer is no JSON: {text}"
    if isinstance(error, AttributeError):  # OpenEnv's client takes every answer for a dict
        return f"its answer is no message of OpenEnv: {text}"
    if isinstance(error, ConnectionClosed):
        return f"it closed the connection: {text}"
    return f"{type(error).__name__}: {text}"


def _refusal(status: int, headers: Mapping[str, str]) -> str:
    answer = f"it answered HTTP {status}"
    if status in _STARTING:
        return f"{answer} until the deadline: it is down, or a Space that sleeps or starts"
    if status in _HIDDEN:
        return f"{answer}: nothing is served there, or a private Space that HF_TOKEN must open"
    if status in _REDIRECTS:
        return f"{answer}, a redirect to {headers.get('Location')}: use the address it leads to"
    return f"{answer} and no WebSocket: is this the address of a browser server?"


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _open_socket(
    url: str, headers: Mapping[str, str] | None, max_size: int, deadline_s: float
) -> Any:
    """Open a WebSocket; while the host says that it is starting, until `deadline_s` is over."""
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
                max_size=max_size,
                open_timeout=None,  # the deadline is the caller's
                ping_interval=None,  # and notices a dead server
                **options,
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status not in _STARTING or time.monotonic() + RETRY_S >= end:
                raise ConnectionError(_refusal(status, error.response.headers)) from error
        except (OSError, InvalidHandshake) as error:
            raise ConnectionError(f"no connection: {error}") from error
        await asyncio.sleep(RETRY_S)
