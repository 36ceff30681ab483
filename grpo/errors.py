"""The error that any part of the library may raise, and the reason of one in a line."""

from __future__ import annotations

MAX_REASON = 500
"""Characters of the reason of an error."""


class ConfigError(ValueError):
    """The user asked for something that cannot be done; the message is one line and says why."""


def one_line_reason(error: BaseException) -> str:
    """Describe an exception in one line of at most `MAX_REASON` characters."""
    text = " ".join(str(error).split()).rstrip(".")
    if not isinstance(error, OSError | ValueError | ImportError | RuntimeError) or not text:
        text = f"{type(error).__name__}: {text}".rstrip(": ")  # KeyError('banana') is "'banana'"
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
