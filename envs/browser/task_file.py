"""Files of the user's own tasks, such as `my_site/tasks.py`."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from envs.base import TaskError
from envs.browser.actions import EXTRA_ACTIONS
from envs.browser.browsergym_task import BrowserGymTask, task_of_class
from envs.browser.web_task import Command, Folder, WebTask

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class TaskFile:
    """The tasks of one file: its subclasses of `WebTask`, and the variants held by its variables.

    Subclasses of BrowserGym's `AbstractBrowserTask` count as well, each as a `BrowserGymTask`.

    Classes whose name starts with an underscore, or that have no `setup`, serve as bases only.

    Args:
        path: the Python file. Its folder is put on `sys.path`: it may import its neighbours.

    Attributes:
        path: the file.
        tasks: the tasks by name, in the order of the file.

    Raises:
        TaskError: the file cannot be read or imported, has no task, or one that is not valid; the
            message is one line that names the file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().resolve()
        module = load_file(self.path, "tasks")
        self.tasks: dict[str, WebTask] = {}
        for variable, value in vars(module).items():
            task = _task_of(variable, value, module)
            if task is None:
                continue
            if self.tasks.get(task.name, task) is not task:
                raise TaskError(f"{self.path}: two tasks are named {task.name!r}")
            try:
                check_task(task)
            except ValueError as error:
                raise TaskError(f"{self.path}: task {task.name!r}: {error}") from error
            self.tasks[task.name] = task
        if not self.tasks:
            raise TaskError(f"{self.path} has no task: expected a subclass of WebTask")

    def find(self, name: str) -> WebTask:
        """Return a task by its name.

        Raises:
            TaskError: there is no such task; the message lists close names.
        """
        if name not in self.tasks:
            close = difflib.get_close_matches(name[:80], self.tasks, n=5) or list(self.tasks)[:5]
            raise TaskError(f"unknown task {name[:80]!r}; close names: {', '.join(close)}")
        return self.tasks[name]

    def names(self, *, held_out: bool) -> list[str]:
        """Return the names of the tasks to train on, or of those to evaluate on alone."""
        return [name for name, task in self.tasks.items() if task.held_out == held_out]

    def folder_of(self, task: WebTask) -> Path:
        """Return the folder that a task's relative paths start from: that of its class."""
        return _file_of(type(task)).parent


def load_file(path: str | Path, content: str) -> ModuleType:
    """Import a Python file of the user's own; its folder is put on `sys.path`.

    Args:
        path: the file.
        content: what it is expected to have, for errors.

    Raises:
        TaskError: it cannot be read or imported; one line that names the file.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        reason = "it is not a file" if path.exists() else "there is no such file"
        raise TaskError(f"expected a Python file of {content}, got {path}: {reason}")
    name = f"grpo_tasks_{hashlib.blake2b(str(path).encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskError(f"expected a Python file of {content}, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else line_of(str(path), error)
        reason = f"{type(error).__name__}: {error}"
        raise TaskError(f"cannot import {path}, line {line}: {reason}") from error
    return module


def line_of(file: str | type, error: BaseException) -> str:
    """Return the last line of a file, or of the file of a class, that an exception came through."""
    path = str(_file_of(file)) if isinstance(file, type) else file
    line = "?"
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = str(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _task_of(variable: str, value: Any, module: ModuleType) -> WebTask | None:
    """Return the task that a variable of the file stands for, else None."""
    if variable.startswith("_"):
        return None
    if isinstance(value, WebTask):
        value.name = value.__dict__.get("name") or variable
        return value
    if not isinstance(value, type) or value.__module__ != module.__name__:
        return None
    if not issubclass(value, WebTask):
        return task_of_class(value)
    if value.setup is WebTask.setup:
        return None
    task: WebTask = value()
    task.name = value.__dict__.get("name") or value.__name__
    return task


def check_task(task: WebTask) -> None:
    """Raise ValueError for an attribute that cannot be used, in one line."""
    if not _NAME.fullmatch(task.name):
        raise ValueError(f"name must be letters, digits, '.', '_' or '-', got {task.name!r}")
    if not isinstance(task, BrowserGymTask):
        _check_site(task)
    if type(task.max_turns) is not int or task.max_turns < 1:
        raise ValueError(f"max_turns must be an integer of at least 1, got {task.max_turns!r}")
    if not all(100 <= side <= 4000 for side in _two_integers(task.viewport)):
        raise ValueError(f"viewport must be two sizes from 100 to 4000, got {task.viewport!r}")
    for action in _texts("actions", task.actions):
        if action not in EXTRA_ACTIONS:
            raise ValueError(f"actions may be {', '.join(EXTRA_ACTIONS)}, got {action!r}")
    for name, path in task.files.items():
        if not (_file_of(type(task)).parent / path).is_file():
            raise ValueError(
                f"files has {name!r}, but {str(path)!r} is not a file beside the tasks"
            )
    for origin in _texts("allowed_origins", task.allowed_origins):
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError(f"an allowed origin is such as https://example.com, got {origin!r}")


def _check_site(task: WebTask) -> None:
    site = task.site
    if isinstance(site, str) and not re.match(r"https?://[^/]", site):
        raise ValueError(f"site must be an http address, a Folder or a Command, got {site!r}")
    if isinstance(site, Folder) and not (_file_of(type(task)).parent / site.path).is_dir():
        raise ValueError(
            f"site must be a folder beside the file, got {str(site.path)!r}: no such folder"
        )
    if isinstance(site, Command):
        if isinstance(site.args, str) or not site.args:
            raise ValueError(f"the site's command must be a list of arguments, got {site.args!r}")
        if not any("{port}" in text for text in (*site.args, *site.env.values())):
            raise ValueError("the site's command must contain {port}, the port to listen on")
    if task.evaluate.__func__ is WebTask.evaluate:  # type: ignore[attr-defined]
        raise ValueError("it must define evaluate")
    for name in ("setup", "evaluate", "teardown"):
        if not inspect.iscoroutinefunction(getattr(task, name)):
            raise ValueError(f"{name} must be a coroutine: async def {name}(...)")


def _two_integers(value: Any) -> Iterator[int]:
    pair = tuple(value) if isinstance(value, tuple | list) else ()
    if len(pair) != 2 or not all(type(side) is int for side in pair):
        raise ValueError(f"viewport must be (width, height) in pixels, got {value!r}")
    yield from pair


def _texts(name: str, value: Any) -> Sequence[str]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a list of texts, got {value!r}")
    return value


def _file_of(kind: type) -> Path:
    return Path(str(sys.modules[kind.__module__].__file__))
