"""End processes by a mark in their environment, which every descendant inherits."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def marked(mark: str) -> list[int]:
    """Return the ids of the processes whose environment holds `mark` (Linux; elsewhere none).

    A process tree cannot tell: a browser starts its own process group, and one whose parent
    was killed has a new parent.

    Args:
        mark: `NAME=value`.
    """
    wanted = mark.encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes()
        except OSError:
            continue  # it ended meanwhile, or belongs to someone else
        if wanted in environment.split(b"\0"):
            found.append(int(path.parent.name))
    return found


def kill_marked(mark: str, deadline_s: float = 5.0) -> None:
    """Kill the marked processes, and those that they start meanwhile.

    Args:
        mark: `NAME=value`.
        deadline_s: seconds after which it gives up.

    Raises:
        TimeoutError: some are still there.
    """
    end = time.monotonic() + deadline_s
    while pids := [pid for pid in marked(mark) if pid != os.getpid()]:
        if time.monotonic() > end:
            raise TimeoutError(f"processes {pids} did not end within {deadline_s:g} s")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
