"""Element ids that reveal nothing about the layout.

BrowserGym numbers elements in document order: within a task the right button would have the
same id on every page, and a policy could learn the number instead of reading. So the ids that
the model reads are a permutation of the server's, drawn per task, seed and variant.
"""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Iterable
from functools import lru_cache

from envs.base import Task
from envs.browser.foreign_text import one_line
from envs.browser.limits import MAX_FRAMES, MAX_ID

_BID = re.compile(r"([A-Za-z]*)(0|[1-9][0-9]*|)")
_MENTIONED = re.compile(
    r"""(bid[ =]|get_by_test_id\(|no element )(["']?)([A-Za-z]{0,5}(?:0|[1-9][0-9]{0,5}))\2"""
)
MAX_ERROR_LENGTH = 200
_LONGEST_SHUFFLE = 1000
_ROUNDS = 4


def page_ids(task: Task, bids: Iterable[str]) -> dict[str, str]:
    """Return the id that the model reads for each of the server's ids of a page.

    Args:
        task: determines the permutation.
        bids: the server's ids.

    Raises:
        ValueError: one is not an id (see `page_id`), or they name more than `MAX_FRAMES` frames.
    """
    bids = set(bids)
    frames = {bid.rstrip("0123456789") for bid in bids}
    if len(frames) > MAX_FRAMES:
        raise ValueError(f"expected at most {MAX_FRAMES} frames on a page, got {len(frames)}")
    return {bid: page_id(task, bid) for bid in bids}


def page_id(task: Task, bid: str) -> str:
    """Return the id that the model reads instead of the server's.

    The numbers 0..89 are permuted onto 10..99, the next 900 onto 100..999, and so on; the
    letters of an element inside a frame (`a12`) stay in front. Different ids stay different.

    Args:
        task: determines the permutation.
        bid: the server's id (BrowserGym's attribute `bid`).

    Raises:
        ValueError: `bid` is not letters followed by a number, or longer than `MAX_ID`.
    """
    match = _BID.fullmatch(bid) if 0 < len(bid) <= MAX_ID else None
    if match is None:
        raise ValueError(
            f"bid must be letters and digits such as '12' or 'a12', at most {MAX_ID} characters, "
            f"got {bid[:80]!r}"
        )
    frame, digits = match.groups()
    if not digits:
        return frame
    number, size = int(digits) + 10, 10
    while number >= 10 * size:
        size *= 10
    variant = f"/{task.variant}" if task.variant else ""
    key = f"{task.name}/{task.seed}{variant}/{frame}/{size}"
    if size <= _LONGEST_SHUFFLE:
        return f"{frame}{size + _shuffled(key, 9 * size)[number - size]}"
    return f"{frame}{size + _scattered(key, 9 * size, number - size)}"


def with_page_ids(task: Task, error: str) -> str:
    """Return the first line of a server's error, with the ids that the model reads."""
    error = one_line(error.strip().partition("\n")[0], MAX_ERROR_LENGTH)
    return _MENTIONED.sub(lambda m: f"{m[1]}{m[2]}{page_id(task, m[3])}{m[2]}", error)


@lru_cache(maxsize=4 * MAX_FRAMES)
def _shuffled(key: str, count: int) -> array[int]:
    """Return a permutation of 0..count-1 as a list: every page of MiniWoB uses this one."""
    order = list(range(count))
    random.Random(key).shuffle(order)
    return array("H", order)


def _scattered(key: str, count: int, number: int) -> int:
    """Return a number's place in a permutation of 0..count-1, without the list.

    A Feistel network permutes the numbers of 2k bits; a result outside of the range is permuted
    again until it is inside. More than a quarter of those numbers is inside, so this ends soon.
    """
    bits = ((count - 1).bit_length() + 1) // 2
    mask = (1 << bits) - 1
    while True:
        left, right = number >> bits, number & mask
        for i in range(_ROUNDS):
            digest = hashlib.blake2b(f"{key}/{i}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        number = left << bits | right
        if number < count:
            return number
