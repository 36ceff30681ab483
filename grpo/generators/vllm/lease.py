"""A vLLM server serves one run at a time: the lease, kept inside the server.

`grpo serve-vllm` adds `RunLease` to vLLM's API server. A run takes the lease before it loads
anything. From then on requests that change the server or sample from it are accepted from that run
alone, so a server never samples a run's completions from somebody else's weights.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

LEASE_PATH = "/grpo/lease"
RUN_HEADER = "x-grpo-run"
LOCK_FILE = "lock"
"""A file in a run's folder, locked while the run's process lives (see `PolicyFolders`)."""

MIDDLEWARE = f"{__name__}.RunLease"
"""The value of vLLM's option --middleware."""


class Holder(NamedTuple):
    """The run that a server belongs to.

    Attributes:
        run: its id.
        name: describes it to people.
        folder: its folder, which server and run both see.
    """

    run: str
    name: str
    folder: str


def is_abandoned(folder: Path) -> bool:
    """Tell whether the process that made a run's folder has ended."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:  # locked, or not to be read
        return False
    return True


class Lease:
    """Which run a server belongs to.

    Attributes:
        holder: that run; None from the start of the server until a run takes the lease.
    """

    def __init__(self) -> None:
        self.holder: Holder | None = None

    def take(self, claimant: Holder) -> bool | None:
        """Give the lease to a run, unless another one holds it that still lives.

        Returns:
            True if it is newly given, False if the run had it, None if it is refused.
        """
        if self.holder and self.holder.run == claimant.run:
            return False
        if self.holder and not is_abandoned(Path(self.holder.folder)):
            return None
        self.holder = claimant
        return True

    def allows(self, run: str) -> bool:
        """Tell whether a request may be served; `run` is empty if it names no run."""
        return run == (self.holder.run if self.holder else "")


class RunLease:
    """ASGI middleware that keeps a `Lease` and refuses (HTTP 409) what it does not allow.

    GET requests are served to everyone. The body of a refusal is `{"holder": name or null}`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app, self.lease = app, Lease()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        run = dict(scope["headers"]).get(RUN_HEADER.encode(), b"").decode("latin-1")
        is_new: bool | None = False
        if scope["path"] == LEASE_PATH and scope["method"] == "POST":
            given = parse_qs(scope["query_string"].decode("latin-1"))
            name, folder = (given.get(key, [""])[0] for key in ("name", "folder"))
            is_new = self.lease.take(Holder(run, name, folder)) if run else None
            allowed = is_new is not None
        else:
            allowed = self.lease.allows(run)
        if allowed and scope["path"] != LEASE_PATH:
            await self.app(scope, receive, send)
            return
        if allowed and scope["method"] == "DELETE":
            self.lease.holder = None
        if allowed:
            await _respond(send, 200, {"is_new": is_new})
        else:
            holder = self.lease.holder
            await _respond(send, 409, {"holder": holder.name if holder else None})


async def _respond(send: Any, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
