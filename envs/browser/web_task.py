"""A page or site of the user's own as a task, written against Playwright's `Page`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from playwright.async_api import Page

    from envs.browser.page_text import Element


class Outcome(NamedTuple):
    """A task's verdict on the page after an action.

    Attributes:
        reward: reward of this action.
        done: True if the episode is over.
        success: True if the whole task is done; a part of it is a reward, never a success.
    """

    reward: float = 0.0
    done: bool = False
    success: bool = False


@dataclass(frozen=True)
class Folder:
    """A folder of HTML files as a site, served on a free port of 127.0.0.1.

    Attributes:
        path: the folder, relative to the file of the task.
    """

    path: str


@dataclass(frozen=True)
class Command:
    """A command that starts an app as a site.

    In `args` and in the values of `env`, `{port}` is a free port of 127.0.0.1 that the app has to
    listen on, and `{data}` is a new empty folder, which is removed when the app is stopped. The
    command runs in the folder of the task's file; `python` is the interpreter that runs the server.

    Attributes:
        args: the command and its arguments.
        ready: path of the app that responds (with a status below 500) once the app is ready.
        per: "server" for one app that all sessions share, "session" for one per session.
        env: environment variables besides the server's own.
        start_deadline_s: seconds that the app may take until it is ready.
    """

    args: Sequence[str]
    ready: str = "/"
    per: Literal["server", "session"] = "server"
    env: Mapping[str, str] = field(default_factory=dict)
    start_deadline_s: float = 30.0


Site = str | Folder | Command
"""Address of a site that runs already, or how to start one."""


class WebTask:
    """A task on a site, started by `setup` and judged by `evaluate`.

    Subclass it, or make variants of a task: `AddTodo(items=("tea",))` is a task with another
    value of a class attribute. Each episode runs on a copy of its own, so `setup` may store on
    `self` what `evaluate` needs. Every episode has a browser context of its own.

    Args:
        parameters: values of class attributes.

    Attributes:
        name: name of the task; empty for the name of the class, or of the variable that holds a
            variant.
        site: the site that the task runs on.
        max_turns: maximum number of actions in an episode; then it is over, with no success.
        viewport: width and height of the window in pixels.
        deterministic: True if equal seeds and equal actions always lead to equal pages.
        allowed_origins: origins such as `https://cdn.example.com` that pages may load from, besides
            the site's own. All other requests fail, and the agent cannot go there.
        actions: what the agent may do besides the usual: "goto", "go_back", "answer".
        cookies: cookies as Playwright's `add_cookies` takes them; without `url` and `domain` they
            are cookies of the site.
        storage_state: Playwright's storage state of a logged-in user: a file, relative to the file
            of the task, or the object itself.
        files: files that the agent may choose in a file input, by the name it uses; paths are
            relative to the file of the task.
        held_out: True to evaluate on this task and never train on it.
        url: address of the site, without a slash at the end; set before `setup`.
        session_id: a text that no other episode has, for an app that keeps state per tenant.
        answer: text of the agent's `answer('text')`, which ends the episode; None before.
    """

    name: str = ""
    site: Site = ""
    max_turns: int = 10
    viewport: tuple[int, int] = (800, 600)
    deterministic: bool = False
    allowed_origins: Sequence[str] = ()
    actions: Sequence[str] = ()
    cookies: Sequence[Mapping[str, Any]] = ()
    storage_state: str | Path | Mapping[str, Any] | None = None
    files: Mapping[str, str] = MappingProxyType({})
    held_out: bool = False

    url: str = ""
    session_id: str = ""
    answer: str | None = None

    def __init__(self, **parameters: Any):
        for name, value in parameters.items():
            if name.startswith("_") or not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r} to set")
            setattr(self, name, value)

    async def setup(self, page: Page, rng: random.Random) -> str:
        """Bring page and app to the start of an episode.

        Args:
            page: an empty page in a new browser context; its `context`, `context.request` and the
                rest of Playwright's API are there to be used.
            rng: source of every random choice; equal seeds give equal numbers.

        Returns:
            The goal in words, as the agent reads it.
        """
        raise NotImplementedError

    async def evaluate(self, page: Page) -> Outcome | bool:
        """Judge the page after an action.

        Args:
            page: the page in front; after a new tab was opened, that tab.

        Returns:
            The outcome, or a bool: True is a reward of 1, the end and a success, False is a reward
            of 0 and not the end. After `answer` the episode ends in any case.
        """
        raise NotImplementedError

    async def teardown(self, page: Page) -> None:
        """Release what the episode holds outside of the browser; called once, at its end."""

    def demonstrate(self, elements: Sequence[Element], turn: int) -> str:
        """Return the right action for a page, for demonstrations; empty if there is none.

        It is asked on every page, also where the agent went another way; a KeyError, IndexError or
        StopIteration counts as none.

        Args:
            elements: the page as the model reads it; an action names an element by its `id`.
            turn: number of actions done so far.
        """
        return ""
