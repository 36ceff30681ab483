"""Element ids that reveal nothing about the layout.

BrowserGym numbers elements in document order: within a task the right button would have the
same id on every page, and a policy could learn the number instead of reading. So the ids that
the model reads are a permutation of the server's, drawn per (task, seed).
"""

from __future__ import annotations

import random
import re
from functools import lru_cache

from envs.base import Task

_BID = re.compile(r"([A-Za-z]*)([0-9]*)")


def page_id(task: Task, bid: str) -> str:
    """Return the id that the model reads instead of the server's.

    The numbers 0..89 are permuted onto 10..99, the next 900 onto 100..999, and so on; the
    letters of an element inside a frame (`a12`) stay in front. Different ids stay different.

    Args:
        task: name and seed of the permutation.
        bid: the server's id (BrowserGym's attribute `bid`).

    Raises:
        ValueError: `bid` is not letters followed by digits.
    """
    match = _BID.fullmatch(bid)
    if not bid or match is None:
        raise ValueError(f"bid must be letters and digits such as '12' or 'a12', got {bid!r}")
    frame, digits = match.groups()
    if not digits:
        return frame
    number, size = int(digits) + 10, 10
    while number >= 10 * size:
        size *= 10
    return f"{frame}{size + _permutation(task.name, task.seed, frame, size)[number - size]}"


@lru_cache(maxsize=256)
def _permutation(name: str, seed: int, frame: str, size: int) -> list[int]:
    order = list(range(9 * size))
    random.Random(f"{name}/{seed}/{frame}/{size}").shuffle(order)
    return order
