"""Processes as Linux's /proc lists them: who started whom, which still run, which are Chromiums."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

# A shell resumes the process even if this program is killed in the meantime.
_FREEZE = 'kill -STOP "$1" && sleep "$2"; kill -CONT "$1"'


def children(pid: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(p) for task in tasks for p in (task / "children").read_text().split()]
    except OSError:
        return []  # it has ended


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, those they started, and so on."""
    return [p for child in children(pid) for p in (child, *descendants(child))]


def alive(pids: Iterable[int]) -> list[int]:
    """Return the processes that still run; zombies do not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def running(pids: Iterable[int], parts: Iterable[bytes]) -> list[int]:
    """Return the processes whose command contains all of these parts."""
    return [pid for pid, command in _commands(pids) if all(part in command for part in parts)]


def chromiums(pids: Iterable[int], *, pages: bool = False) -> list[int]:
    """Return the main process of each Chromium, or with `pages` those that render its pages."""
    found = []
    for pid, command in _commands(pids):
        # A child process may show its command as one text, with spaces instead of zero bytes.
        wanted = b"--type=renderer" in command if pages else b"--type=" not in command
        if b"chrom" in command.split(b"\0")[0] and wanted:
            found.append(pid)
    return found


def _commands(pids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield the processes that still run, with their commands."""
    for pid in pids:
        try:
            yield pid, Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it has ended


async def freeze(pid: int, seconds: float) -> None:
    """Stop a process and resume it after some seconds, or as soon as this is cancelled.

    Returns early if someone kills the process in the meantime.
    """
    shell = subprocess.Popen(
        ["sh", "-c", _FREEZE, "sh", str(pid), str(seconds)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while shell.poll() is None and Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.1)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
