"""Counting for the benchmarks of the browser server: episodes per second, and memory."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Episode:
    """One episode of a session; times in seconds, reward None if an exception ended it."""

    session: int
    end: float
    reward: float | None
    reset: float = 0.0
    steps: tuple[float, ...] = ()


def windows(
    episodes: Sequence[Episode], seconds: float, sessions: int
) -> dict[int, tuple[float, float]]:
    """Return the start and end of each session's measurement window, once it is known.

    A window begins and ends with the end of an episode of its session. It begins once every
    session has ended an episode. Sessions end their episodes together, in bursts, so a window
    common to all of them would contain one burst more or less.

    Args:
        episodes: of all sessions so far.
        seconds: minimum length of a window.
        sessions: number of sessions.
    """
    ends: dict[int, list[float]] = defaultdict(list)
    for episode in episodes:
        ends[episode.session].append(episode.end)
    found = {}
    if len(ends) == sessions:
        start = max(map(min, ends.values()))
        for session, times in ends.items():
            begin = min((end for end in times if end >= start), default=math.inf)
            stop = min((end for end in times if end >= begin + seconds), default=math.inf)
            if stop < math.inf:
                found[session] = begin, stop
    return found


def count(episodes: Sequence[Episode], seconds: float, sessions: int) -> dict[str, Any]:
    """Count the episodes that ended in their session's window; arguments as in `windows`.

    Returns:
        `rate`, episodes with reward 1 per second over all sessions; the seconds of `resets` and
        `steps`; and of all episodes, how many were `wrong` (any other reward) or `lost` (none).
    """
    rate = 0.0
    inside: list[Episode] = []
    for session, (begin, stop) in windows(episodes, seconds, sessions).items():
        some = [e for e in episodes if e.session == session and begin < e.end <= stop]
        rate += sum(e.reward == 1 for e in some) / (stop - begin)
        inside += [e for e in some if e.reward is not None]
    return {
        "rate": rate,
        "resets": [e.reset for e in inside],
        "steps": [step for e in inside for step in e.steps],
        "wrong": sum(e.reward not in (None, 1) for e in episodes),
        "lost": sum(e.reward is None for e in episodes),
    }


def pss(pids: Iterable[int]) -> float:
    """Return the memory of processes in MB; a shared page is divided among those that map it."""
    kilobytes = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        kilobytes += sum(map(int, re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)))
    return kilobytes * 1024 / 1e6
