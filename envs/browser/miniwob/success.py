"""Which raw reward of MiniWoB is the whole task.

MiniWoB's raw reward is what a page passes to `core.endEpisode`, before the loss for time. Nearly
every task pays 1 for the right answer and -1 for a wrong one. The tasks of `PARTIAL` also pay for
a part of it, and BrowserGym calls any raw reward above 0 a success. Here a success is the whole
task: the full reward, or the task's own least reward where the full one is out of reach.
"""

from __future__ import annotations

from typing import NamedTuple

FULL = 1.0
"""The raw reward for the whole task."""


class Rule(NamedTuple):
    """How a task pays for a part.

    Attributes:
        pays: what a partly right answer gets.
        least: the least raw reward that is a success.
        tolerance: why a reward below `FULL` is one; empty where none is.
    """

    pays: str
    least: float = FULL
    tolerance: str = ""


_BOXES = Rule("(right boxes - wrong boxes) / boxes: nothing ticked pays if few are asked for")
_MARK = "a click is on a whole pixel, so that the exact point is mostly out of reach"
_PICKER = "the nearest colour of the picker's pixels is up to 1.1 % off: 2 % are allowed"

PARTIAL = {
    "ascending-numbers": Rule("numbers clicked / numbers, at the first wrong one"),
    "bisect-angle": Rule("1 - degrees off / half the angle", 0.9, f"{_MARK}: a tenth of the half"),
    "circle-center": Rule("1 - distance / radius", 0.9, f"{_MARK}: a tenth of the radius"),
    "click-checkboxes": _BOXES,
    "click-checkboxes-large": _BOXES,
    "click-checkboxes-soft": _BOXES,
    "click-checkboxes-transfer": _BOXES,
    "drag-shapes-2": Rule("0.26 per shape in its box, -0.2 per other; four of five: 0.84"),
    "draw-circle": Rule("0.1 to 0.9 by roundness and size; 1 within 2 pixels, 20 wide and high"),
    "draw-line": Rule("0.8 for the direction, 0.2 for the point, each less by steps"),
    "find-greatest": Rule("0.1 for another card"),
    "find-midpoint": Rule("1 - distance / 30 pixels", 0.9, f"{_MARK}: 3 pixels"),
    "hot-cold": Rule("0.5 within 10 pixels, 0.25 within 40; 1 within 5"),
    "odd-or-even": Rule("1/3 per right number, -1/3 per wrong or unmarked one"),
    "phone-book": Rule("0.4 for another detail of the right person"),
    "right-angle": Rule("1 - degrees off / 90, up to 45", 0.95, f"{_MARK}: 4.5 degrees"),
    "use-colorwheel": Rule("1 - mean difference of red, green and blue", 0.98, _PICKER),
    "use-colorwheel-2": Rule("1 - mean difference of red, green and blue", 0.98, _PICKER),
}
"""The tasks that pay for a part; every other one pays `FULL` or nothing above 0."""

_FULL_ONLY = Rule("")


def is_success(task: str, raw_reward: float) -> bool:
    """Return True if MiniWoB's raw reward says that the whole task is done.

    Args:
        task: name of the task, without the prefix `miniwob.`.
        raw_reward: as MiniWoB reports it, without the loss for time.
    """
    return raw_reward >= PARTIAL.get(task, _FULL_ONLY).least
