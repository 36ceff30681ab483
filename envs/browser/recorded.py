"""Chats of pages that were recorded: in the pictures of a run, and in demonstrations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from envs.base import Message
from envs.browser.prompts import ACTION, Prompt
from envs.demonstrations import read_demonstrations

Chat = tuple[Message, ...]


def recorded_chats(
    path: Path, count: int, extra: Sequence[str] = (), prompt: Prompt = ACTION
) -> list[Chat]:
    """Return distinct chats that a policy was asked to continue.

    Args:
        path: a run's folder with `media/**/episode.json`, or a file of demonstrations with pages.
        count: how many to return at most, evenly spaced over those that there are.
        extra: the tasks' actions of `EXTRA_ACTIONS`.
        prompt: the answer format.

    Raises:
        OSError, ValueError: a file cannot be read.
    """
    found = _demonstrated(path, extra, prompt) if path.is_file() else _of_run(path, extra, prompt)
    chats = list(dict.fromkeys(json.dumps(chat) for chat in found))
    step = max(len(chats) / count, 1.0)
    return [tuple(json.loads(chats[int(i * step)])) for i in range(min(count, len(chats)))]


def _of_run(folder: Path, extra: Sequence[str], prompt: Prompt) -> Iterator[Chat]:
    for path in sorted((folder / "media").glob("*/*/*/episode.json")):
        try:
            pages = json.loads(path.read_text(encoding="utf-8"))["pages"]
            contents = [str(page["prompt"]) for page in pages]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"expected a recorded episode in {path}, got {error!r}") from error
        yield from (prompt.around(content, extra) for content in contents)


def _demonstrated(path: Path, extra: Sequence[str], prompt: Prompt) -> Iterator[Chat]:
    for shown in read_demonstrations(path):
        for turn, page in enumerate(shown.pages):
            yield prompt.messages(shown.goal, page, shown.actions[:turn], "", extra)
