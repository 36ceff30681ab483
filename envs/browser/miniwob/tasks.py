"""BrowserGym's own code for MiniWoB's tasks, run on a recording of a page.

BrowserGym evaluates one script after another on a page and waits for each result. Here its code
runs twice: first on a recorder that notes the scripts, then, after the real page has run all of
them at once, on a player that returns the results. So a task's seed, goal, raw reward and end are
BrowserGym's own; what counts as a success is not (`envs.browser.miniwob.success`).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from envs.base import TaskError
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.success import is_success

Script = tuple[str, bool]
"""A JavaScript expression or function; True to wait until its value is true."""


class Outcome(NamedTuple):
    """A task's verdict on a page.

    Attributes:
        success: True if the whole task is done.
        done: True if the episode is over.
        raw_reward: MiniWoB's own reward.
        success_browsergym: BrowserGym's reward as a bool: True if the raw reward is above 0.
    """

    success: bool
    done: bool
    raw_reward: float
    success_browsergym: bool


@cache
def tasks() -> dict[str, type]:
    """Return BrowserGym's MiniWoB tasks by name, e.g. `click-test`."""
    os.environ.setdefault("MINIWOB_URL", miniwob_url())
    import browsergym.miniwob

    return {task.subdomain: task for task in browsergym.miniwob.ALL_MINIWOB_TASKS}


def find_task(name: str) -> type:
    """Return the task class of a name, with or without the prefix `miniwob.`.

    Raises:
        TaskError: there is no such task; the message lists close names.
    """
    bare = name.removeprefix("miniwob.")
    if bare not in tasks():
        close = difflib.get_close_matches(bare[:80], tasks(), n=5) or sorted(tasks())[:5]
        raise TaskError(f"unknown task {name[:80]!r}; close names: {', '.join(close)}")
    return tasks()[bare]


class Episode:
    """One task with one seed.

    Args:
        task_class: a class that `find_task` returned.
        seed: seed of the task.

    Attributes:
        url: address of the task's page.
        setup: scripts that start the task after the page has loaded.
        check: scripts whose values give the outcome.
    """

    def __init__(self, task_class: Any, seed: int):
        self._task_class, self._seed = task_class, seed
        page = _RecordedPage()
        self._task = self._new_task()
        self._task.setup(page)
        self.url: str = page.url
        self.setup: list[Script] = page.scripts
        page = self._task.page = _RecordedPage(url=self.url)
        self._task.validate(page, [])
        self.check: list[Script] = page.scripts

    def goal(self, values: Iterable[Any]) -> str:
        """Return the task in words, from the values of the scripts in `setup`."""
        goal, _ = self._new_task().setup(_RecordedPage(values=values))
        return str(goal)

    def outcome(self, url: str, values: Iterable[Any]) -> Outcome:
        """Return the outcome, from the page's address and the values of the scripts in `check`."""
        page = self._task.page = _RecordedPage(url=url, values=values)
        reward, done, _, info = self._task.validate(page, [])
        raw = float(info.get("RAW_REWARD_GLOBAL", 0.0))
        success = is_success(self._task_class.subdomain, raw)
        return Outcome(success, bool(done), raw, reward > 0)

    def _new_task(self) -> Any:
        return self._task_class(seed=self._seed)


class _RecordedPage:
    """Stands in for a Playwright page.

    Args:
        url: address of the page.
        values: values of the scripts, in order; None to record the scripts instead.
    """

    # The value of every script while recording: six numbers, as the page's state has.
    PLACEHOLDER = (0,) * 6

    def __init__(
        self,
        url: str = "",
        values: Iterable[Any] | None = None,
    ):
        self.url = url
        self.scripts: list[Script] = []
        self._values = None if values is None else iter(values)

    def goto(self, url: str) -> None:
        self.url = url

    def evaluate(self, script: str) -> Any:
        return self._value(script, False)

    def wait_for_function(self, script: str) -> Any:
        return self._value(script, True)

    def _value(self, script: str, until: bool) -> Any:
        self.scripts.append((script, until))
        return self.PLACEHOLDER if self._values is None else next(self._values)
