"""The gallery: one HTML page to step through recorded episodes, also while a program runs."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import quote

from grpo.distributed import World
from grpo.files import read_json, write_text
from grpo.safe_output import one_line, printable, without_passwords
from grpo.shutdown import Stopped

TRAINING = "training"
"""Label of the episodes of training steps, whose folders are `training/<step>/<role>/`."""

LABELS = ("before", TRAINING, "after")
"""These episodes come first, in this order."""

RUNNING = "running"
"""Phase of a state in which the page refreshes itself."""


def write_gallery(
    media: Path,
    *,
    title: str,
    state: Mapping[str, Any] | None = None,
    overview: Mapping[str, Any] | None = None,
) -> None:
    """Write `index.html`, which shows every recorded episode.

    The page needs no other file, except while a program is running: then pictures are files
    beside it, and it reads `state.js` every few seconds, and `data.js` after each new version.

    Args:
        media: folder of `<label>/<task>/<seed>/`, as `record_episode` leaves them.
        title: of the page.
        state: what the program does (see `grpo.reporting.watch`); None where none is running.
        overview: success rates (see `grpo.reporting.watch`); None for episodes alone.
    """
    name = media.resolve().parent.name
    page = {"name": name, "title": title, "state": state, "overview": overview}
    if state is not None:
        script = _script(page | {"episodes": _episodes(media)})
        write_text(media / "data.js", script, durable=False)
    inline = state is None or state["phase"] != RUNNING
    # A script ends at "</script", also inside a string: a completion may contain that.
    data = _json(page | {"episodes": _episodes(media, inline=inline)}).replace("<", "\\u003c")
    html = Path(__file__).with_name("gallery.html").read_text(encoding="utf-8")
    write_text(media / "index.html", html.replace("DATA", data, 1), durable=inline)
    if state is not None:
        write_state(media, state)


def write_state(media: Path, state: Mapping[str, Any]) -> None:
    """Write `state.js`, by which a page that is open learns what the program does."""
    write_text(media / "state.js", _script({"state": state}), durable=False)


def read_state(media: Path) -> dict[str, Any]:
    """Return what `write_state` has written; {} if it has not."""
    try:
        text = (media / "state.js").read_text(encoding="utf-8")
        state = json.loads(json.loads(text.partition("(")[2].rpartition(")")[0]))["state"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


@contextmanager
def ending(folder: Path, world: World) -> Iterator[None]:
    """Let the page of a program that fails in the block, or is stopped, say so.

    Args:
        folder: the program's.
        world: its processes; the main rank writes.
    """
    started, media = time.time(), folder / "media"
    try:
        yield
    except BaseException as error:
        state = read_state(media)
        is_own = state.get("written", 0) >= started  # not of an earlier program
        if world.is_main and state.get("phase") == RUNNING and is_own:
            state |= {"phase": "stopped", "written": time.time()}
            if not isinstance(error, Stopped | KeyboardInterrupt | asyncio.CancelledError):
                state |= {"phase": "failed", "reason": one_line(without_passwords(error))}
            with suppress(OSError):
                write_state(media, state)
        raise


def _script(value: Any) -> str:
    """Return a script that gives the page a value: as a string, so that it stays data."""
    return f"receive({json.dumps(_json(value))})\n"


def _json(value: Any) -> str:
    return json.dumps(_printable(value), allow_nan=False)


def _printable(value: Any) -> Any:
    """Make every text in a JSON value printable, and a text of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return printable(value) if isinstance(value, str) else value


def _episodes(media: Path, *, inline: bool = False) -> list[dict[str, Any]]:
    """Read the recorded episodes, in the order of the page.

    Args:
        media: of `write_gallery`.
        inline: True for pictures as data, False for their paths.
    """
    episodes = []
    for path in media.glob("*/*/*/episode.json"):
        label, group, role = path.parent.relative_to(media).parts
        if not (episode := read_json(path)):  # a killed run has left a part of it
            continue
        episode["label"] = label
        if label == TRAINING:
            if not group.isdecimal() or "." in role:  # a killed run has not removed it
                continue
            episode |= {"step": int(group), "role": role}
        else:
            episode["tally"] = read_json(media / label / "tally.json").get(episode["task"])
        for k, page in enumerate(episode["pages"]):
            if (picture := path.with_name(f"{k}.png")).is_file():
                page["picture"] = _address(picture, media, inline)
        episodes.append(episode)
    return sorted(episodes, key=_place)


def _address(picture: Path, media: Path, inline: bool) -> str:
    if not inline:
        return quote(picture.relative_to(media).as_posix())
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _place(episode: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what episodes are sorted by: label, training step, task, seed, role."""
    label = episode["label"]
    first = LABELS.index(label) if label in LABELS else len(LABELS)
    step, role = episode.get("step", 0), episode.get("role", "")
    return first, label, step, role, episode["task"], episode["seed"]
