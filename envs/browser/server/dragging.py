"""The way of the pointer from one point to another, the same on both drivers."""

from __future__ import annotations

STEPS = 10
"""Moves of a drag: a page that draws or sorts under the pointer needs more than one."""


def between(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Return `STEPS` points on the straight line from `start`, the last of which is `end`."""
    (x1, y1), (x2, y2) = start, end
    return [
        (x1 + (x2 - x1) * step / STEPS, y1 + (y2 - y1) * step / STEPS)
        for step in range(1, STEPS + 1)
    ]
