"""Stock BrowserGym's environment of a task, with this machine's Chromium."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from envs.base import TaskError
from envs.browser.browsergym_task import BENCHMARKS, PREFIX, BrowserGymTask
from envs.browser.server.chromium import find_chromium
from envs.browser.task_file import line_of

ACTION_TIMEOUT_MS = 2000
"""Milliseconds that an action may take. BrowserGym's own 500 are too few on a busy machine, where
an action that is right then fails as often as one in twenty times."""


class CannotMake(Exception):
    """The constructor of a task failed."""


class TaskFailed(TaskError):
    """The task's own code failed, though browser and site are there."""


def make_env(task: BrowserGymTask, name: str) -> Any:
    """Make BrowserGym's environment of a task; no browser runs before its `reset`.

    Its `step` takes one call of an action, as Python that this program has written. Besides what
    BrowserGym raises, `reset` raises `CannotMake`, and both raise `TaskFailed`.

    Args:
        task: the task.
        name: what error messages call it.

    Raises:
        TaskError: there is no such task, or its environment does not take an option.
    """
    from browsergym.core.action.functions import check, uncheck
    from browsergym.core.action.highlevel import HighLevelActionSet
    from browsergym.core.env import BrowserEnv

    _start_playwright()
    actions = HighLevelActionSet(["bid", "nav", "chat", "custom"], custom_actions=[check, uncheck])
    functions = actions.python_includes.replace("timeout=500", f"timeout={ACTION_TIMEOUT_MS}")
    options: dict[str, Any] = {
        "action_mapping": lambda call: f"{functions}\n{call}\n",
        "task_kwargs": task.task_kwargs,
        **task.options,
    }
    try:
        if isinstance(task.task, str):
            env = _registered(task.task, name, options)
        else:
            env = BrowserEnv(task.task, **options)
    except TypeError as error:  # an unknown option
        raise TaskError(f"cannot make task {name[:80]!r}: {describe(error)}") from error
    env.task_entrypoint = partial(_new_task, env.task_entrypoint, name)
    return env


def describe(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _start_playwright() -> None:
    """Start BrowserGym's Playwright, whose browsers are the Chromium that all else here uses."""
    from browsergym.core import _get_global_playwright

    playwright = _get_global_playwright()
    if isinstance(playwright.chromium.launch, partial):
        return  # it was started before
    # An argument of `BrowserEnv` reaches one browser only: its chat window starts another.
    launch = partial(playwright.chromium.launch, executable_path=find_chromium())
    playwright.chromium.launch = launch
    node = playwright._impl_obj._connection._transport._proc.pid
    threading.Thread(target=_exit_without, args=(node,), daemon=True).start()


def _exit_without(node: int) -> None:
    """End this process when Playwright's own has ended: calls would wait for it for ever."""
    while True:
        try:
            os.kill(node, 0)
        except ProcessLookupError:
            print("Playwright's process ended", file=sys.stderr, flush=True)
            os._exit(1)
        time.sleep(0.2)


def _registered(task: str, name: str, options: dict[str, Any]) -> Any:
    """Make the environment of a registered task.

    Raises:
        TaskError: there is none; the message says why, or lists close names.
    """
    import gymnasium

    benchmark = task.partition(".")[0]
    module, package = BENCHMARKS.get(benchmark, (f"browsergym.{benchmark}", ""))
    missing = None
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error
    except Exception as error:  # a benchmark checks versions and downloads data at its import
        raise TaskError(f"cannot make task {name[:80]!r}: {describe(error)}") from error
    ids = [one.removeprefix(PREFIX) for one in gymnasium.registry if one.startswith(PREFIX)]
    if task in ids:
        return gymnasium.make(f"{PREFIX}{task}", disable_env_checker=True, **options).unwrapped
    if missing is not None:
        install = f": install {package}" if package else ""
        raise TaskError(f"unknown task {name[:80]!r}: {missing}{install}")
    close = difflib.get_close_matches(task[:80], ids, n=5) or sorted(ids)[:5]
    raise TaskError(f"unknown task {name[:80]!r}; close names: {', '.join(close)}")


def _new_task(make: Callable[..., Any], name: str, seed: int, **arguments: Any) -> Any:
    """Make a BrowserGym task, whose constructor checks its arguments and settings."""
    try:
        task = make(seed=seed, **arguments)
    except Exception as error:
        raise CannotMake(describe(error)) from error
    for what in ("setup", "validate", "teardown"):
        setattr(task, what, partial(_run, getattr(task, what), f"task {name!r} failed: {what}"))
    return task


def _run(method: Callable[..., Any], what: str, *args: Any, **options: Any) -> Any:
    """Call a method of a task; a mistake in it is a `TaskFailed`."""
    from playwright.sync_api import Error

    try:
        return method(*args, **options)
    except (AssertionError, OSError, Error):
        raise  # how a task says that page or site are not as they should be
    except Exception as error:
        if type(error) is Exception:  # Playwright's, when its process has ended
            raise
        kind = type(getattr(method, "__self__", None))
        raise TaskFailed(f"{what}, line {line_of(kind, error)}: {describe(error)}") from error
