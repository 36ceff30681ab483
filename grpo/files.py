"""Files of a run: replaced as a whole or not at all, text as UTF-8, and folders of one run each."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grpo.errors import ConfigError

RUN_FILE = "run.json"
"""Names the run that the folder's files belong to."""

LOCK_FILE = "run.lock"
EARLIER = "earlier"
"""Folder in a run's folder for the runs that were there before."""

FOLDERS = ("checkpoints", "adapter", "model", "media", "tensorboard", "wandb", EARLIER)
FILES = (
    *("checkpoints", "config.yaml", "metrics.jsonl", "summary.json", "completions.txt"),
    *("adapter", "model", "curves.png", "media", "tensorboard", "evaluation.json"),
    *("imitation.jsonl", "imitation.png", "wandb", "wandb-id", RUN_FILE),
)
"""What a run leaves. Checkpoints come first: without them nobody resumes a run that is half moved,
and the id comes last."""

CARD = "README.md"
CARD_MARK = "by grpo-browser"
"""Part of the text of every model card: tells it from a README.md that the user has written."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield where to write a file or a folder, which then takes the place of `path`.

    Whoever reads `path`, also after a kill or on a full disk, finds what was there before or all
    of the new one. (Between two renames of a folder it finds none, and the old one as `.old`.)

    Args:
        path: of the file or folder.
        durable: False not to wait for the disk: after a power failure it may be broken.

    Raises:
        OSError: it could not be written; the old one is unchanged. The message names the path.
    """
    unfinished = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)
        yield unfinished
        for written in [*unfinished.rglob("*"), unfinished] if durable else []:
            _fsync(written)
        if path.is_dir() or (unfinished.is_dir() and path.exists()):
            old = _move_away(path)
            unfinished.rename(path)
            _remove(old)
        else:
            unfinished.replace(path)
            if path.is_dir():  # a kill between these renames has left the old one
                _remove(_old_name(path))
        if durable:
            _fsync(path.parent)
    except OSError as error:
        with suppress(OSError):
            _remove(unfinished)  # make room on a full disk
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def remove(folder: Path) -> None:
    """Remove a folder with its files: whoever finds it, also after a kill, finds all of it.

    What is left after a kill is named `<folder>.old`.

    Raises:
        OSError: it could not be removed.
    """
    _remove(_move_away(folder))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a text file (see `replacing`).

    Raises:
        OSError: it could not be written.
    """
    with replacing(path, durable=durable) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing, cut off, or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def run_id(folder: Path) -> str:
    """Return the id of the run that a folder belongs to; "" if it has none, or none of ours."""
    found = read_json(folder / RUN_FILE).get("id")
    if not isinstance(found, str) or not re.fullmatch("[0-9a-zA-Z]{1,64}", found):
        return ""
    return found


def begin_run(folder: Path) -> str:
    """Give a folder to a new run; return its id."""
    new = secrets.token_hex(6)
    write_text(folder / RUN_FILE, json.dumps({"id": new}) + "\n")
    return new


def set_aside(folder: Path) -> Path | None:
    """Move what an earlier run left in a folder to another one inside it.

    Returns:
        Where it is now; None if there was nothing.
    """
    names = [name for name in FILES if (folder / name).exists()]
    if not {RUN_FILE, "checkpoints", "metrics.jsonl"} & set(names):  # no run's folder
        return None
    if _is_card(folder / CARD):
        names.insert(-1, CARD)
    target = folder / EARLIER / (run_id(folder) or secrets.token_hex(6))
    if any(os.path.lexists(target / name) for name in names):  # somebody has copied it back
        target = target.with_name(f"{target.name}-{secrets.token_hex(3)}")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).rename(target / name)
    return target


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other programs out of a run's folder for the length of the block.

    The lock ends with the process, however it ends. An empty folder is removed again.

    Raises:
        ConfigError: another program has the folder, or it cannot be written, or something else
            has the name of one of a run's files or folders.
    """
    _check_names(folder)
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = os.fstat(descriptor).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            raise ConfigError(
                f"another run is writing to {str(folder)!r}: wait for its end, or give this one "
                "another folder (--output)"
            )
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
                folder.rmdir()
    finally:
        os.close(descriptor)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Make a folder, and check that it can be written, before the block; leave none empty after it.

    Raises:
        ConfigError: as of `locked`, but for other programs.
    """
    _check_names(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _check_names(folder: Path) -> None:
    for name in {*FOLDERS, *FILES, CARD}:
        path, expected = folder / name, "folder" if name in FOLDERS else "file"
        is_kind = os.path.isdir if name in FOLDERS else os.path.isfile  # no errors of long names
        if os.path.lexists(path) and not is_kind(path):
            raise ConfigError(
                f"cannot write to the run's folder {str(folder)!r}: its {name} must be a "
                f"{expected}, and is something else: move it away, or give the run another folder "
                "(--output)"
            )


def _is_card(path: Path) -> bool:
    try:
        return path.is_file() and CARD_MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _cannot_write(folder: Path, error: OSError) -> ConfigError:
    is_other = isinstance(error, FileExistsError | NotADirectoryError)
    reason = "it is not a folder, or inside a file" if is_other else error.strerror
    return ConfigError(f"cannot write to the run's folder {str(folder)!r}: {reason}")


def _move_away(folder: Path) -> Path:
    old = _old_name(folder)
    _remove(old)
    return folder.rename(old)


def _old_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
