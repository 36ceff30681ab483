"""What the benchmarks of the browser server count: episodes a second, and memory."""

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
    """One episode of a session; times in seconds, no reward if an exception ended it."""

    session: int
    end: float
    reward: float | None
    reset: float = 0.0
    steps: tuple[float, ...] = ()


def windows(
    episodes: Sequence[Episode], seconds: float, sessions: int
) -> dict[int, tuple[float, float]]:
    """Return from when to when each session is measured, once it is known.

    That is from an end of an episode, the first when all sessions have had one, to an end
    `seconds` later. Sessions end their episodes together, in bursts, so a window common to all
    would hold one burst more or less.

    Args:
        episodes: of all sessions so far.
        seconds: the least length of a window.
        sessions: how many there are.
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
    """Count what ended in its session's window.

    Returns:
        `rate` (episodes with reward 1 a second, of all sessions) and the seconds of `resets` and
        `steps`; how many of all episodes were `wrong` (another reward) or `lost` (none).
    """
    rate, inside = 0.0, []
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
    """Return the memory of processes in MB, each page shared out among those that map it."""
    kilobytes = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it ended meanwhile
        kilobytes += sum(map(int, re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)))
    return kilobytes * 1024 / 1e6
