"""Responses of browser servers: those of `envs.browser.server`, and those of OpenEnv's own.

OpenEnv's `envs/browsergym_env` speaks the same protocol with other contents. Its servers

- serve the one task of their BROWSERGYM_TASK_NAME whatever was asked for (before June 2026;
  even their state then names the wrong task), so the page's address decides, for MiniWoB: the
  address of another benchmark's page does not name the task;
- name the tasks of their BROWSERGYM_BENCHMARK without it: `4` of `webarena`, not `webarena.4`;
- reward any raw reward of MiniWoB above 0 with 1 and send no `success`: what is the whole task is
  decided here, by the raw reward (`envs.browser.miniwob.success`), where the server sends that;
- respond to a step that raised an exception with a reward of 0 and no page;
- flatten the page with BrowserGym's defaults: `InlineTextBox` repeats each text, and generic
  nodes are missing, though some of them are the only ones with an id (as the links of click-link);
- report why an action failed only in `metadata`, which openenv-core 0.3 does not send;
- send screenshots as nested lists `[H][W][3]`, even if not asked for.

Nothing that a response lacks is made up: a response that is not an outcome is a `ValueError`, and
so is one that is over a limit of `envs.browser.limits`. Text is cleaned of control characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from envs.base import Box, TaskError
from envs.browser.drawings import Drawing, read_drawings
from envs.browser.fields import (
    of_type,
    read_boxes,
    read_list,
    read_names,
    read_number,
    read_png,
    read_text,
)
from envs.browser.foreign_text import clean, one_line
from envs.browser.limits import (
    MAX_LINES,
    MAX_REWARD,
)
from envs.browser.miniwob.names import MINIWOB_TASKS
from envs.browser.miniwob.success import is_success

# Parts of Playwright's log when the page, not a slow machine, stopped an action.
_REFUSALS = {
    "element is not visible": "the element is not visible",
    "element is not enabled": "the element is not enabled",
    "element is not editable": "the element is not editable",
    "intercepts pointer events": "another element covers it",
    "outside of the viewport": "the element is outside the window",
    "did not find some options": "there is no such option",
}
_TIMEOUT = re.compile(r"TimeoutError: (?:\w+\.(\w+))?")
_REPEATED_TEXT = re.compile(r"\t*(?:\[\w+\] )?InlineTextBox\b")
_UNKNOWN_TASK = re.compile(
    r"(?:unknown|cannot make) task .*|task '.*?' failed: .*"
    r"|Failed to create BrowserGym .* doesn't exist.*"
)
_OBSERVED = ("axtree_txt", "goal", "url", "error")


@dataclass(frozen=True)
class Response:
    """The outcome of a reset or a step.

    Attributes:
        goal: the instruction.
        axtree_txt: the page as BrowserGym flattens it, without repeated texts.
        url: address of the page.
        error: why the action failed, empty if it did not.
        screenshot: PNG bytes; None if none was sent or asked for.
        reward: reward of the step; meaningless after a reset.
        raw_reward: MiniWoB's own reward; None if the server does not send it.
        done: True if the episode is over.
        boxes: rectangles of elements on the screenshot, by the server's ids; only
            `envs.browser.server` sends them, and what follows.
        success: True if the whole task is done; of other servers, if the reward is above 0, where
            MiniWoB's raw reward does not tell.
        success_browsergym: BrowserGym's verdict on a task of MiniWoB; None for other tasks.
        task_name: the task, if it is one of the user's own.
        actions: the task's actions of `EXTRA_ACTIONS`.
        drawings: what is drawn on the page.
        places: rectangles of its elements by the server's ids, if the task has actions on points.
        left_out: number of lines of the page that are not shown, by where they are.
        demonstration: the right action by the task's script, with the server's ids.
        deterministic: True if equal actions after equal starts lead to equal pages.
        names: names of elements that have none, by the server's ids.
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
    success: bool = False
    success_browsergym: bool | None = None
    task_name: str = ""
    actions: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    places: dict[str, Box] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    demonstration: str = ""
    deterministic: bool = False
    names: dict[str, str] = field(default_factory=dict)


def read_reset(payload: Any, task_name: str, *, screenshot: bool) -> Response:
    """Read the response to a reset.

    Args:
        payload: the message's `data`.
        task_name: the task that was asked for, without the prefix `miniwob.`.
        screenshot: True if a screenshot was asked for.

    Raises:
        TaskError: the page belongs to another task. Only MiniWoB's pages tell.
        ValueError: this is not the first observation of an episode; the message says why.
    """
    response = _read(payload, task_name, 0.0, screenshot)
    if response.done:
        raise ValueError("the episode was over before its first action")
    if not response.goal:
        raise ValueError("the first observation has no goal")
    if response.task_name == task_name:
        return response
    page = PurePosixPath(urlsplit(response.url).path)
    of_miniwob = page.stem in MINIWOB_TASKS and page.parent.name == "miniwob"
    if page.stem != task_name and (of_miniwob or task_name in MINIWOB_TASKS):
        raise TaskError(
            f"asked for task {task_name!r}, got the page {response.url!r:.200}: an OpenEnv server "
            "of before June 2026 serves only the task of its BROWSERGYM_TASK_NAME"
        )
    return response


def read_step(payload: Any, task_name: str, *, screenshot: bool) -> Response:
    """Read the response to a step.

    Args:
        payload: the message's `data`.
        task_name: the episode's task, without the prefix `miniwob.`.
        screenshot: True if a screenshot was asked for.

    Raises:
        ValueError: this is not the outcome of a step (it has no reward, say); the message
            says why.
    """
    return _read(payload, task_name, None, screenshot)


def unknown_task(message: str) -> str:
    """Return a server's error message if it says that it does not have the task, otherwise ''."""
    match = _UNKNOWN_TASK.match(message)
    return one_line(match[0].removesuffix(" (code: EXECUTION_ERROR)")) if match else ""


def _read(payload: Any, task_name: str, reward: float | None, screenshot: bool) -> Response:
    """Read a response, with its own reward if `reward` is None."""
    data = of_type(dict, payload, "the response")
    observation = of_type(dict, data.get("observation"), "the response's observation")
    metadata = data.get("metadata") or observation.get("metadata") or {}
    metadata = of_type(dict, metadata, "metadata")
    browsergym = of_type(dict, metadata.get("browsergym_obs", {}), "browsergym_obs")
    info = of_type(dict, metadata.get("browsergym_info", {}), "browsergym_info")
    text = {name: read_text(observation.get(name), name) for name in _OBSERVED}
    # Our server leaves out the finished page if no screenshot was asked for.
    finished = data.get("done") is True and "success" in metadata
    if not text["axtree_txt"] and not finished:
        raise ValueError(f"the server sent no axtree_txt: {text['error'] or 'it gives no reason'}")
    task_info = of_type(dict, info.get("task_info") or {}, "task_info")
    raw = metadata.get("raw_reward", task_info.get("RAW_REWARD_GLOBAL"))
    raw = None if raw is None else read_number(raw, "raw_reward", MAX_REWARD)
    failed = browsergym.get("last_action_error") or observation.get("last_action_error")
    lines = text["axtree_txt"].splitlines()
    reward = read_number(data.get("reward"), "reward", MAX_REWARD) if reward is None else reward
    success, by_browsergym = metadata.get("success"), metadata.get("success_browsergym")
    of_miniwob = task_name in MINIWOB_TASKS and not metadata.get("task_name")
    if by_browsergym is None and of_miniwob:  # of a server whose reward is BrowserGym's
        by_browsergym = reward > 0
        if raw is not None:
            success = is_success(task_name, raw)
            reward = float(success)
    left_out = of_type(dict, metadata.get("left_out", {}), "left_out")
    return Response(
        goal=text["goal"],
        axtree_txt="\n".join(line for line in lines if not _REPEATED_TEXT.match(line)),
        url=text["url"],
        error=text["error"] or (action_failure(failed) if failed else ""),
        screenshot=read_png(observation.get("screenshot")) if screenshot else None,
        reward=reward,
        raw_reward=raw,
        done=of_type(bool, data.get("done"), "done"),
        boxes=read_boxes(metadata.get("boxes", {})) if screenshot else {},
        success=reward > 0 if success is None else of_type(bool, success, "success"),
        success_browsergym=None
        if by_browsergym is None
        else of_type(bool, by_browsergym, "success_browsergym"),
        task_name=read_text(metadata.get("task_name"), "task_name"),
        actions=tuple(
            read_text(a, "actions") for a in read_list(metadata.get("actions", []), "actions")
        ),
        drawings=read_drawings(metadata.get("drawings", [])),
        places=read_boxes(metadata.get("places", {})),
        left_out={
            name: int(read_number(left_out.get(name, 0), "left_out", MAX_LINES))
            for name in ("above", "below", "clipped", "drawn")
        },
        demonstration=read_text(metadata.get("demonstration"), "demonstration"),
        deterministic=of_type(bool, metadata.get("deterministic", False), "deterministic"),
        names=read_names(metadata.get("names", {})),
    )


def action_failure(reason: Any) -> str:
    """Translate BrowserGym's error into ours, or raise ValueError if the machine was slow."""
    if not isinstance(reason, str):
        return "the action failed"
    log = clean(reason)
    timeout = _TIMEOUT.match(log)
    if timeout is None:
        return log
    if "action done" in log:
        return ""  # only the wait after the click timed out
    for refusal, meaning in _REFUSALS.items():
        if refusal in log:
            return f"{timeout[1] or 'the action'} failed: {meaning}"
    raise ValueError(f"the server's browser was too slow: {log}")
