"""BrowserGym's own code for MiniWoB's tasks and trees, run over a record of a page.

BrowserGym asks a page one question after another and waits for each answer. Here its code
runs twice: once against a page that notes the questions, and once, when the real page has
answered them all at once, against a page that reads the answers out. So a task's seed, goal,
reward and end, and the text of its tree, are what BrowserGym says they are.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from envs.base import TaskError
from envs.browser.miniwob.files import miniwob_url

Script = tuple[str, bool]
"""A JavaScript expression or function, and whether to wait until its value is true."""


class Outcome(NamedTuple):
    """What a task makes of a page: BrowserGym's reward and end, and MiniWoB's raw reward."""

    reward: float
    done: bool
    raw_reward: float


@cache
def tasks() -> dict[str, type]:
    """Return BrowserGym's MiniWoB tasks by name, e.g. `click-test`."""
    os.environ.setdefault("MINIWOB_URL", miniwob_url())
    import browsergym.miniwob

    return {task.subdomain: task for task in browsergym.miniwob.ALL_MINIWOB_TASKS}


def find_task(name: str) -> type:
    """Return the task class of a name, with or without the `miniwob.` in front.

    Raises:
        TaskError: there is no such task; the message lists close names.
    """
    bare = name.removeprefix("miniwob.")
    if bare not in tasks():
        close = difflib.get_close_matches(bare, tasks(), n=5) or sorted(tasks())[:5]
        raise TaskError(f"unknown task {name[:80]!r}; close names: {', '.join(close)}")
    return tasks()[bare]


class Episode:
    """One task from one seed.

    Attributes:
        url: of the task's page.
        setup: the scripts that start it, after the page's load.
        check: the scripts that tell how it stands.
    """

    def __init__(self, task_class: Any, seed: int):
        """Read the scripts from BrowserGym's task class.

        Args:
            task_class: what `find_task` returned.
            seed: of the task.
        """
        self._new = lambda: task_class(seed=seed)
        page = _Page()
        self._task = self._new()
        self._task.setup(page)
        self.url: str = page.url
        self.setup: list[Script] = page.scripts
        page = self._task.page = _Page(url=self.url)
        self._task.validate(page, [])
        self.check: list[Script] = page.scripts

    def goal(self, answers: Iterable[Any]) -> str:
        """The task in words, from the page's answers to `setup`."""
        goal, _ = self._new().setup(_Page(answers=answers))
        return str(goal)

    def outcome(self, url: str, answers: Iterable[Any]) -> Outcome:
        """How it stands, from the page's address and its answers to `check`."""
        page = self._task.page = _Page(url=url, answers=answers)
        reward, done, _, info = self._task.validate(page, [])
        return Outcome(float(reward), bool(done), float(info.get("RAW_REWARD_GLOBAL", 0.0)))


def tree_text(tree: dict[str, Any]) -> str:
    """Write an accessibility tree as BrowserGym does, the elements' ids in front.

    Args:
        tree: what `Accessibility.getFullAXTree` answered while the page was marked.
    """
    from browsergym.core.observation import extract_merged_axtree

    return merged_tree_text(extract_merged_axtree(_Page(tree=tree)))


def merged_tree_text(tree: dict[str, Any]) -> str:
    """Write a tree that BrowserGym has merged, its `axtree_object`."""
    from browsergym.utils.obs import IGNORED_AXTREE_ROLES, flatten_axtree_to_str

    # BrowserGym does not know InlineTextBox, which repeats the text above it. Generic nodes
    # stay: in click-link they alone carry an id.
    roles = [*IGNORED_AXTREE_ROLES, "InlineTextBox"]
    return flatten_axtree_to_str(tree, skip_generic=False, ignored_roles=roles)


class _Page:
    """What BrowserGym takes for a Playwright page; it is its own browser context and session."""

    # Stands for an answer while the questions are noted: six numbers, as the page's state has.
    NOTHING = (0,) * 6

    def __init__(
        self,
        url: str = "",
        answers: Iterable[Any] | None = None,
        tree: dict[str, Any] | None = None,
    ):
        self.url = url
        self.scripts: list[Script] = []
        self.context = self
        self._answers = None if answers is None else iter(answers)
        self._tree = tree

    def goto(self, url: str) -> None:
        self.url = url

    def evaluate(self, script: str) -> Any:
        return self._ask(script, False)

    def wait_for_function(self, script: str) -> Any:
        return self._ask(script, True)

    def _ask(self, script: str, until: bool) -> Any:
        self.scripts.append((script, until))
        return self.NOTHING if self._answers is None else next(self._answers)

    def new_cdp_session(self, page: Any) -> _Page:
        return self

    def send(self, method: str, parameters: dict[str, Any]) -> Any:
        frame = {"frame": {"id": "main"}}  # MiniWoB's pages have no frames
        return {"frameTree": frame} if method == "Page.getFrameTree" else self._tree

    def detach(self) -> None:
        pass
