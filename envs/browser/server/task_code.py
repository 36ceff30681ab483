"""The code of users' tasks: its mistakes end a run in one line, failures around it do not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

from envs.base import TaskError
from envs.browser.foreign_text import one_line
from envs.browser.limits import MAX_REWARD
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.sites import RunningSite
from envs.browser.task_file import line_of
from envs.browser.web_task import Outcome, WebTask


async def run_code(
    task: WebTask,
    what: str,
    work: Coroutine[Any, Any, Any],
    browser: PlaywrightChromium,
    site: RunningSite,
) -> Any:
    """Run `setup`, `evaluate` or `teardown` of a task, and return its result.

    Args:
        task: the task.
        what: the name of the method.
        work: the call of the method.
        browser: the task's Chromium.
        site: the task's site.

    Raises:
        TaskError: it raised an exception though browser and site are there: a mistake in the task.
        SessionError, BrowserError: the infrastructure failed. A failed assertion counts as that,
            and so do Playwright's errors: they say that page or app are not as they should be.
    """
    from playwright.async_api import TimeoutError as PlaywrightTimeout

    try:
        return await browser.call(work)
    except (AssertionError, BrowserError, PlaywrightTimeout) as error:
        if not site.alive:
            raise SessionError(f"the app of {task.name} has ended") from error
        if isinstance(error, BrowserError):
            raise
        # Without Playwright's search of the stack its errors begin with an empty name of the call.
        reason = one_line(str(error)).removeprefix(": ") or type(error).__name__
        line = line_of(type(task), error)
        raise SessionError(f"{what} of {task.name} failed, line {line}: {reason}") from error
    except SessionError:
        raise
    except Exception as error:
        if not await asyncio.to_thread(site.responds):
            raise SessionError(f"the app of {task.name} does not respond") from error
        raise code_error(task, what, error) from error


def outcome_of(task: WebTask, verdict: Any) -> Outcome:
    """Return what `evaluate` of a task returned as an outcome.

    Raises:
        TaskError: it is neither a bool nor an outcome.
    """
    if isinstance(verdict, bool):
        return Outcome(float(verdict), verdict, verdict)
    if not isinstance(verdict, Outcome):
        raise task_error(task, f"evaluate must return a bool or Outcome, got {verdict!r:.80}")
    reward, done, success = verdict
    if type(reward) not in (int, float) or not math.isfinite(reward) or abs(reward) > MAX_REWARD:
        raise task_error(task, f"a reward must be a finite number, got {reward!r:.80}")
    return Outcome(float(reward), bool(done or success), bool(success))


def task_error(task: WebTask, reason: str) -> TaskError:
    """Return the error that a task cannot be played as it is."""
    return TaskError(f"task {task.name!r} failed: {reason}")


def code_error(task: WebTask, what: str, error: Exception) -> TaskError:
    """Return the error that a task's method raised an exception; it names the line."""
    reason = one_line(f"{type(error).__name__}: {error}")
    return task_error(task, f"{what}, line {line_of(type(task), error)}: {reason}")
