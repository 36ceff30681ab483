"""The date that a run's prompts are rendered with, kept beside the trained weights."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

from grpo.errors import ConfigError

DATE_FILE = "chat.json"


def save_date(folder: str | Path, day: str) -> None:
    """Write the date of the prompts that the weights in a folder were trained on.

    Raises:
        OSError: it could not be written.
    """
    Path(folder, DATE_FILE).write_text(json.dumps({"date": day}) + "\n", encoding="utf-8")


def saved_date(*folders: str | Path) -> str:
    """Return the date that `save_date` wrote to the first of the folders that has one, or "".

    Raises:
        ConfigError: the file is not as `save_date` writes it.
    """
    for path in (Path(folder, DATE_FILE) for folder in folders):
        if path.is_file():
            try:
                saved = json.loads(path.read_text(encoding="utf-8"))["date"]
                return date.fromisoformat(saved).isoformat()
            except (OSError, ValueError, TypeError, KeyError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise ConfigError(
                    f'{path} must hold {{"date": "2026-11-26"}}, got {reason}'
                ) from error
    return ""
