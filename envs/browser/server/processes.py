"""Find and kill all processes that one process started, and say why one of them ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from envs.browser.foreign_text import one_line

_PR_SET_PDEATHSIG = 1


def marked(mark: str, session: int | None = None) -> list[int]:
    """Return the ids of all processes with a mark and of their descendants (Linux; else none).

    Children inherit the mark and keep it when their parent is gone, but a browser's children
    overwrite their environment: they are found as children of marked ones, or by their session.

    Args:
        mark: `NAME=value`.
        session: id of a session (`setsid`) whose processes count as well.
    """
    wanted = mark.encode()
    found: set[int] = set()
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            environment = (folder / "environ").read_bytes()
            # After the name, which may contain anything: state, parent, group, session, ...
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended, or belongs to another user
        children.setdefault(int(fields[1]), []).append(pid)
        ended = fields[0] in "ZX"
        if not ended and (wanted in environment.split(b"\0") or int(fields[3]) == session):
            found.add(pid)
    pending = list(found)
    while pending:
        new = [pid for pid in children.get(pending.pop(), []) if pid not in found]
        found.update(new)
        pending += new
    return sorted(found)


def kill_marked(mark: str, session: int | None = None, deadline_s: float = 5.0) -> None:
    """Kill what `marked` returns, and what those processes start in the meantime.

    Args:
        mark: `NAME=value`.
        session: id of a session (`setsid`) whose processes count as well.
        deadline_s: seconds after which it gives up.

    Raises:
        TimeoutError: some are still alive.
    """
    end = time.monotonic() + deadline_s
    while pids := [pid for pid in marked(mark, session) if pid != os.getpid()]:
        if time.monotonic() > end:
            raise TimeoutError(f"processes {pids} did not end within {deadline_s:g} s")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def end_with_parent() -> None:
    """Have this process killed when its parent ends (Linux only); for `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def last_lines(output: str, count: int = 1) -> str:
    """Return the lines of a process's output that say why it ended: the last ones, most often.

    Chromium's own log lines say more than the stack trace that follows them.

    Args:
        output: what it wrote.
        count: number of lines at most.
    """
    lines = [line for line in output.splitlines() if line.strip()]
    logged = [line for line in lines if ":ERROR:" in line or ":FATAL:" in line]
    return "\n".join(map(one_line, (logged or lines)[-count:])) or "nothing"
