"""The tasks that a command line names: MiniWoB's by name, or those of a file of the user's own."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config import Config
from grpo.errors import ConfigError
from grpo.option_values import short

CONFIGS = Path(__file__).parent / "configs"
"""The configuration of MiniWoB's task is `<task>.yaml` in here, if it has its own."""

HeldOutOf = Callable[[str, Sequence[str]], Mapping[str, bool]]
"""`(file, names) -> {name: held_out}` in the file's order, of all its tasks if no name is given.

Raises a TaskError if the file cannot be used, or a task is not in it.
"""

_FILE = re.compile(r"(.*\.py)(?::(.*))?", re.DOTALL)


def split_address(address: str) -> tuple[str, str]:
    """Split what names tasks into a file and names; either may be empty.

    Args:
        address: `site/tasks.py`, `site/tasks.py:AddTodo,DeleteTodo`, or names alone.
    """
    match = _FILE.fullmatch(address)
    return (match[1], match[2] or "") if match else ("", address)


def read_address(given: dict[str, Any]) -> None:
    """Replace the positional argument of a command line by the options that it stands for.

    Names alone are those of the file that another option or a configuration names, if one does.

    Raises:
        ConfigError: an option says the same, or it is a folder.
    """
    address = given.pop("tasks", None)
    if address is None:
        return
    file, names = split_address(address)
    inside = os.path.join(address, "tasks.py")
    if not file and os.path.isfile(inside):
        raise ConfigError(f"expected tasks, got the folder {short(address)}: try {inside}")
    for option, value in (("task_file", file), ("task", names)):
        if value and option in given:
            flag = "--" + option.replace("_", "-")
            raise ConfigError(f"expected {short(address)} or {flag}, got both")
        if value or (option == "task" and not file):
            given[option] = value


def own_config(given: Mapping[str, Any]) -> Path | None:
    """Return the configuration of the tasks' own, if they have one.

    That of a file of tasks is `config.yaml` beside it, that of one of MiniWoB's is in `CONFIGS`.
    """
    if given.get("task_file"):
        beside = Path(absolute(given["task_file"])).with_name("config.yaml")
        return beside if os.path.isfile(beside) else None
    tasks = Config(task=given.get("task", "click-test")).task
    own = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    return own.get(tasks[0]) if len(tasks) == 1 else None


def absolute(path: str) -> str:
    """Return a path that names the same file from every folder."""
    return os.path.abspath(os.path.expanduser(path))


def options_of_file(
    config: Config,
    names: Sequence[str],
    held_out: Sequence[str] | None,
    held_out_of: HeldOutOf,
    *,
    to_train: bool,
) -> dict[str, Any]:
    """Return the options that a file of tasks determines: the tasks, and the run's folder.

    Args:
        config: the options without it; `task_file` names the file.
        names: the tasks that were asked for; none for all of the file.
        held_out: the held-out ones that were asked for; None for those that the file marks.
        held_out_of: reads the file.
        to_train: True to refuse to train on tasks that are held out.

    Raises:
        ConfigError: there is nothing to train on, or it is held out.
        TaskError: the file cannot be used, or a task is not in it.
    """
    file = absolute(config.task_file)
    options: dict[str, Any] = {"task_file": file}
    if not names and not config.output:
        options["output"] = str(Path("runs", _site_name(Path(file))))
    if config.env_url and names:  # the file may be on the server's machine only
        return options | {"task": names, "held_out_tasks": held_out or ()}
    marks = held_out_of(file, names)
    if held_out is None:
        held_out = [name for name in marks if marks[name]]
    elif held_out:
        held_out_of(file, held_out)
    task = [name for name in marks if name not in held_out and (names or not marks[name])]
    if to_train and (not task or any(marks[name] for name in task)):
        names = [name for name in marks if marks[name]]
        raise ConfigError(f"{file}: expected tasks to train on, got held-out ones: {short(names)}")
    if not task:  # to evaluate
        task, held_out = list(held_out), []
    return options | {"task": task, "held_out_tasks": held_out}


def _site_name(file: Path) -> str:
    """Return a name for all tasks of a file: `my_site` for `my_site/tasks.py`."""
    return file.parent.name if file.stem == "tasks" and file.parent.name else file.stem
