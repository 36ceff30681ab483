"""What a browser server's answers say: those of `envs.browser.server`, and those of OpenEnv's own.

OpenEnv's `envs/browsergym_env` speaks the same protocol with other contents. Its servers

- serve the one task of their BROWSERGYM_TASK_NAME whatever was asked for (before June 2026;
  even their state then names the wrong task), so the page's address decides;
- answer a step that raised an exception with a reward of 0 and no page;
- flatten the page with BrowserGym's defaults: `InlineTextBox` repeats each text, and generic
  nodes are gone, though some alone carry an id (no link of click-link has one there);
- say why an action failed in `metadata` alone, which openenv-core 0.3 does not send;
- send pictures as nested lists `[H][W][3]`, asked for or not.

What an answer lacks is never made up: one that is no outcome is a `ValueError`.
"""

from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from envs.base import Box, TaskError

# What Playwright's log says when the page, not a slow machine, stopped an action.
_REFUSALS = {
    "element is not visible": "the element is not visible",
    "element is not enabled": "the element is not enabled",
    "element is not editable": "the element is not editable",
    "intercepts pointer events": "another element covers it",
    "outside of the viewport": "the element is outside of the window",
    "did not find some options": "there is no such option",
}
_TIMEOUT = re.compile(r"TimeoutError: (?:\w+\.(\w+))?")
_REPEATED_TEXT = re.compile(r"\t*(?:\[\w+\] )?InlineTextBox\b")
_NO_SUCH_TASK = re.compile(r"unknown task .*|Failed to create BrowserGym .* doesn't exist.*")


@dataclass(frozen=True)
class Answer:
    """What a reset or a step led to.

    Attributes:
        goal: the instruction.
        axtree_txt: the page as BrowserGym flattens it, without repeated texts.
        url: the page's address.
        error: why the action failed, empty if it did not.
        screenshot: PNG bytes; None if none was sent, or none asked for.
        reward: of the step; a reset's means nothing.
        raw_reward: MiniWoB's own; None where the server does not tell.
        done: True if the episode is over.
        boxes: by the server's ids, where elements are on the screenshot; ours alone tells.
    """

    goal: str
    axtree_txt: str
    url: str
    error: str
    screenshot: bytes | None
    reward: float
    raw_reward: float | None
    done: bool
    boxes: dict[str, Box]


def read_reset(payload: Any, task_name: str, *, screenshot: bool) -> Answer:
    """Read the answer to a reset.

    Args:
        payload: the message's `data`.
        task_name: the task that was asked for, without `miniwob.` in front.
        screenshot: whether a picture was asked for.

    Raises:
        TaskError: the page is another task's.
        ValueError: this is no first observation of an episode; the message says why.
    """
    answer = _read(payload, 0.0, screenshot)
    if answer.done:
        raise ValueError("the episode was over before its first action")
    if not answer.goal:
        raise ValueError("the first observation has no goal")
    if PurePosixPath(urlsplit(answer.url).path).stem != task_name:
        raise TaskError(
            f"asked for task {task_name!r}, got the page {answer.url!r}: an OpenEnv server of "
            "before June 2026 serves the task of its BROWSERGYM_TASK_NAME alone"
        )
    return answer


def read_step(payload: Any, *, screenshot: bool) -> Answer:
    """Read the answer to a step.

    Args:
        payload: the message's `data`.
        screenshot: whether a picture was asked for.

    Raises:
        ValueError: this is no outcome of a step, e.g. it has no reward; the message says why.
    """
    return _read(payload, None, screenshot)


def no_such_task(message: str) -> str:
    """Return what a server's error message says if it is that the task is unknown, else ''."""
    match = _NO_SUCH_TASK.match(message)
    return match[0].removesuffix(" (code: EXECUTION_ERROR)") if match else ""


def _read(payload: Any, reward: float | None, screenshot: bool) -> Answer:
    """Read an answer whose reward is `reward`, or the answer's own if that is None."""
    data = _of_type(dict, payload, "the answer")
    observation = _of_type(dict, data.get("observation"), "the answer's observation")
    metadata = data.get("metadata") or observation.get("metadata") or {}
    metadata = _of_type(dict, metadata, "metadata")
    browsergym = _of_type(dict, metadata.get("browsergym_obs", {}), "browsergym_obs")
    info = _of_type(dict, metadata.get("browsergym_info", {}), "browsergym_info")
    text = {
        name: _of_type(str, observation.get(name) or "", name)
        for name in ("axtree_txt", "goal", "url", "error")
    }
    # Our server leaves the finished page out where nobody asked for a picture of it.
    finished = data.get("done") is True and "success" in metadata
    if not text["axtree_txt"] and not finished:
        raise ValueError(f"the server sent no axtree_txt: {text['error'] or 'it says no reason'}")
    raw = metadata.get("raw_reward", (info.get("task_info") or {}).get("RAW_REWARD_GLOBAL"))
    failed = browsergym.get("last_action_error") or observation.get("last_action_error")
    lines = text["axtree_txt"].splitlines()
    return Answer(
        goal=text["goal"],
        axtree_txt="\n".join(line for line in lines if not _REPEATED_TEXT.match(line)),
        url=text["url"],
        error=text["error"] or (_failure(failed) if failed else ""),
        screenshot=_png(observation.get("screenshot")) if screenshot else None,
        reward=_finite(data.get("reward"), "reward") if reward is None else reward,
        raw_reward=None if raw is None else _finite(raw, "raw_reward"),
        done=_of_type(bool, data.get("done"), "done"),
        boxes=_boxes(metadata.get("boxes", {})) if screenshot else {},
    )


def _failure(reason: str | bool) -> str:
    """Say of BrowserGym's error what ours says, or raise ValueError if the machine was slow."""
    if not isinstance(reason, str):
        return "the action failed"
    late = _TIMEOUT.match(reason)
    if late is None:
        return reason
    if "action done" in reason:
        return ""  # only what follows the click was late
    for refusal, meaning in _REFUSALS.items():
        if refusal in reason:
            return f"{late[1] or 'the action'} failed: {meaning}"
    raise ValueError(f"the server's browser was too slow: {reason}")


def _png(picture: Any) -> bytes | None:
    if picture is None:
        return None
    if isinstance(picture, str):
        return base64.b64decode(picture, validate=True)
    import numpy as np
    from PIL import Image

    try:
        pixels = np.array(picture, dtype=np.uint8)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"the screenshot is no list of pixels: {error}") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a screenshot must be [H, W, 3], got {list(pixels.shape)}")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _boxes(boxes: Any) -> dict[str, Box]:
    found = {}
    for bid, box in _of_type(dict, boxes, "boxes").items():
        if len(_of_type(list, box, f"the box of {bid}")) != 4:
            raise ValueError(f"the box of {bid} must be 4 numbers, got {len(box)}")
        x, y, width, height = (_finite(number, f"the box of {bid}") for number in box)
        found[bid] = (x, y, width, height)
    return found


def _finite(number: Any, name: str) -> float:
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number!r}")
    return float(number)


def _of_type(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}, got {str(value)[:80]!r}")
    return value
