"""Tasks of BrowserGym: those of its benchmarks, and the user's own `AbstractBrowserTask`s."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from envs.browser.actions import SITE_ACTIONS
from envs.browser.web_task import WebTask

PREFIX = "browsergym/"

BENCHMARKS = MappingProxyType(
    {
        "openended": ("browsergym.core", "browsergym-core"),
        "miniwob": ("browsergym.miniwob", "browsergym-miniwob"),
        "webarena": ("browsergym.webarena", "browsergym-webarena"),
        "webarenalite": ("browsergym.webarenalite", "browsergym-webarenalite"),
        "visualwebarena": ("browsergym.visualwebarena", "browsergym-visualwebarena"),
        "workarena": ("browsergym.workarena", "browsergym-workarena"),
        "assistantbench": ("browsergym.assistantbench", "browsergym-assistantbench"),
        "timewarp": ("browsergym.timewarp", "browsergym-timewarp"),
        "knows": ("browsergym.knows", "browsergym-knows"),
    }
)
"""First word of a task's name -> the module that registers the task, and the package to install."""


class BrowserGymTask(WebTask):
    """A task that runs in BrowserGym's own environment, with BrowserGym's page and actions.

    Write one in a task file to give a registered task its arguments. Subclasses of BrowserGym's
    `AbstractBrowserTask` in a task file need none: each is a task, and its attributes `max_turns`,
    `deterministic`, `held_out`, `actions` and `whole_page` count, if it has them.

    Args:
        task: name of a registered task such as `webarena.310` or `openended`, with or without the
            prefix `browsergym/`; or a subclass of `AbstractBrowserTask`.
        name: name of the task; empty for that of the variable that holds it.
        max_turns: maximum number of actions in an episode.
        deterministic: True if equal seeds and equal actions always lead to equal pages.
        held_out: True to evaluate on this task and never train on it.
        actions: what the agent may do besides the usual: "goto", "go_back", "answer".
        whole_page: False to show the model only what is in the window, as a `WebTask` does.
        options: arguments of BrowserGym's `BrowserEnv` such as `slow_mo` and `viewport`.
        task_kwargs: the task's own arguments, such as `start_url` and `goal` of `openended`.

    Attributes:
        task: the registered name without the prefix, or the class.
        whole_page: False to show the model only what is in the window.
        options: arguments of BrowserGym's `BrowserEnv`.
        task_kwargs: the task's own arguments.
    """

    def __init__(
        self,
        task: str | type,
        *,
        name: str = "",
        max_turns: int = 10,
        deterministic: bool = False,
        held_out: bool = False,
        actions: Sequence[str] = tuple(SITE_ACTIONS),
        whole_page: bool = True,
        options: Mapping[str, Any] = MappingProxyType({}),
        **task_kwargs: Any,
    ):
        self.task = task.removeprefix(PREFIX) if isinstance(task, str) else task
        if name:
            self.name = name
        self.max_turns = max_turns
        self.deterministic = deterministic
        self.held_out = held_out
        self.actions = actions
        self.whole_page = whole_page
        self.options = dict(options)
        self.task_kwargs = task_kwargs


def is_browsergym_task(name: str) -> bool:
    """Return True if a name without a task file stands for a task of stock BrowserGym.

    MiniWoB's tasks have a driver of their own; with the prefix `browsergym/` they, too, run in
    stock BrowserGym.
    """
    if name.startswith(PREFIX):
        return True
    benchmark, dot, _ = name.partition(".")
    return name == "openended" or (bool(dot) and benchmark in BENCHMARKS.keys() - {"miniwob"})


def task_of_class(kind: Any) -> BrowserGymTask | None:
    """Return the task that a subclass of `AbstractBrowserTask` stands for; None for anything else.

    BrowserGym is not imported: who defines a subclass has imported it.
    """
    if not isinstance(kind, type) or inspect.isabstract(kind):
        return None
    bases = [(base.__module__, base.__name__) for base in kind.__mro__[1:]]
    if ("browsergym.core.task", "AbstractBrowserTask") not in bases:
        return None
    task = BrowserGymTask(kind, name=kind.__name__)
    for attribute in ("max_turns", "deterministic", "held_out", "actions", "whole_page"):
        setattr(task, attribute, getattr(kind, attribute, getattr(task, attribute)))
    return task
