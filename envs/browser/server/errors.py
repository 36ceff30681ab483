"""What can go wrong in a session."""

from __future__ import annotations

from typing import Any


class SessionError(RuntimeError):
    """The session cannot respond: its browser died, or the call came at the wrong time."""


class BrowserError(RuntimeError):
    """The browser refused a command, or the command's page is gone: the infrastructure failed."""


class BrowserGone(BrowserError):
    """The browser's process ended."""


class NavigatedAway(BrowserError):
    """The page navigated while a script ran in it."""


class ActionRefused(Exception):
    """The page does not allow an action: the policy failed, not the infrastructure."""


def evaluated(response: dict[str, Any]) -> Any:
    """Return the value in Chromium's response to `Runtime.evaluate`.

    Raises:
        BrowserError: the expression threw.
    """
    if "exceptionDetails" in response:
        details = response["exceptionDetails"]
        raise BrowserError(details.get("exception", {}).get("description", details["text"]))
    return response["result"].get("value")
