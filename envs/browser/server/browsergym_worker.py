"""The process behind a `BrowserGymSession`: stock BrowserGym, one JSON request per line.

It is a process of its own because BrowserGym has one synchronous Playwright per process, changes
the attribute that `get_by_test_id` looks for in the whole process, and its benchmarks read and set
environment variables when they are imported; and because a process can always be killed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from queue import SimpleQueue
from typing import Any

from envs.base import TaskError
from envs.browser.actions import EXTRA_ACTIONS
from envs.browser.browsergym_task import BrowserGymTask
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.success import is_success
from envs.browser.server.browsergym_env import CannotMake, TaskFailed, describe, make_env
from envs.browser.server.browsergym_page import (
    Observed,
    boxes,
    error_text,
    goal_text,
    page_text,
    screenshot,
)
from envs.browser.task_file import TaskFile

_CALLS = {"answer": "send_msg_to_user"}
"""Names of BrowserGym's actions where they differ from ours."""

_UNLIMITED = 10**9
"""Turns of a task that no file limits: the client does."""


class Worker:
    """BrowserGym's environment of one session, made anew when the task is another one.

    Args:
        task_file: file of the user's own tasks; empty for none.
    """

    def __init__(self, task_file: str = ""):
        self._file = TaskFile(task_file) if task_file else None
        self._task = BrowserGymTask("")
        self._name = ""
        self._env: Any = None
        self._goal = ""
        self._turn = 0
        self._screenshot = self._final_page = False

    def reset(
        self, task_name: str, seed: int, screenshot: bool, final_page: bool
    ) -> dict[str, Any]:
        """Start an episode; see `BrowserGymSession.reset`."""
        self._screenshot, self._final_page, self._turn = screenshot, final_page, 0
        task = self._find(task_name)
        if self._env is None or task_name != self._name:
            self.close()
            self._env, self._task, self._name = make_env(task, task_name), task, task_name
        try:
            observed, info = self._env.reset(seed=seed)
        except CannotMake as error:
            self._env = None  # BrowserGym has closed its browsers before it makes a task
            raise TaskError(f"cannot make task {task_name[:80]!r}: {error}") from error
        try:
            self._goal = goal_text(observed)
        except ValueError as error:
            raise TaskError(f"cannot make task {task_name[:80]!r}: {error}") from error
        return self._observation(observed, info, 0.0, False, "")

    def step(self, name: str, args: list[Any]) -> dict[str, Any]:
        """Execute an action; see `BrowserGymSession.step`."""
        error = _refusal(name, args, self._task)
        call = "noop(0)" if error else f"{_CALLS.get(name, name)}({', '.join(map(repr, args))})"
        observed, reward, terminated, truncated, info = self._env.step(call)
        self._turn += 1
        done = terminated or truncated or self._turn >= self._task.max_turns
        error = error or error_text(name, observed["last_action_error"])
        return self._observation(observed, info, float(reward), bool(done), error)

    def close(self) -> None:
        """Close the environment, which lets the task remove what it has made."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _find(self, name: str) -> BrowserGymTask:
        if self._file is None or name not in self._file.tasks:
            return BrowserGymTask(name, max_turns=_UNLIMITED)
        task = self._file.tasks[name]
        if not isinstance(task, BrowserGymTask):
            raise TaskError(f"unknown task {name!r}: it is not one of BrowserGym's")
        return task

    def _observation(
        self, observed: Observed, info: dict[str, Any], reward: float, done: bool, error: str
    ) -> dict[str, Any]:
        tree, left_out = "", dict[str, int]()
        if self._final_page or not done:
            tree, left_out = page_text(observed, whole=self._task.whole_page)
        task_info = info.get("task_info") or {}
        raw_reward = float(task_info.get("RAW_REWARD_GLOBAL", reward))
        # BrowserGym has no success: a reward of 1 is the whole task in all its benchmarks but one.
        verdict = {"success": bool(task_info.get("success", done and reward >= 1.0))}
        if (benchmark_task := str(self._task.task)).startswith("miniwob."):
            success = is_success(benchmark_task.removeprefix("miniwob."), raw_reward)
            verdict = {"success": success, "success_browsergym": reward > 0}
            reward = float(success)
        metadata: dict[str, Any] = {
            **verdict,
            "task_name": self._name,
            "raw_reward": raw_reward,
            "left_out": left_out,
            "actions": list(self._task.actions),
            "deterministic": bool(self._task.deterministic),
        }
        if self._screenshot:
            metadata["boxes"] = boxes(observed)
        return {
            "goal": self._goal,
            "axtree_txt": tree,
            "url": observed["url"],
            "screenshot": screenshot(observed) if self._screenshot else None,
            "error": error,
            "last_action_error": bool(error),
            "done": done,
            "reward": reward,
            "metadata": metadata,
        }


def _refusal(name: str, args: list[Any], task: BrowserGymTask) -> str:
    """Say why an action is not executed, if it is not."""
    if name in EXTRA_ACTIONS and name not in task.actions:
        return f"{name} failed: this task has no such action"
    # Other schemes reach the machine's files and the browser's own pages.
    if name == "goto" and not re.match(r"https?://", args[0]):
        return "goto failed: expected an address that starts with http:// or https://"
    return ""


def _respond(worker: Worker, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": getattr(worker, call)(**arguments)}
    except TaskError as error:
        return {"task_error": str(error), "lost": isinstance(error, TaskFailed)}
    except BaseException as error:  # of any kind: the task's code is foreign
        return {"failure": describe(error)}


def main() -> None:
    """Respond to requests until standard input ends, as it does when the server dies."""
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a task prints must not become a response
    os.environ.setdefault("MINIWOB_URL", miniwob_url())
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # also during a call; Playwright's process then closes its browsers

    threading.Thread(target=read, daemon=True).start()
    worker: Worker | None = None
    while True:
        request = json.loads(lines.get())
        try:
            worker = worker or Worker(sys.argv[1])
        except TaskError as error:
            response: dict[str, Any] = {"task_error": str(error)}
        else:
            response = _respond(worker, request.pop("call"), request)
        print(json.dumps(response), file=responses, flush=True)


if __name__ == "__main__":
    main()
