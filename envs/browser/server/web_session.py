"""One session: users' own tasks, one episode after another, each in a window of its own."""

from __future__ import annotations

import asyncio
import copy
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from envs.browser.actions import EXTRA_ACTIONS, POINT_ACTIONS, Action, format_action
from envs.browser.limits import MAX_GOAL
from envs.browser.page_text import simplify_axtree
from envs.browser.server.drawn import drawn_metadata
from envs.browser.server.errors import ActionRefused, BrowserError, SessionError
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.covered import covered_screenshot
from envs.browser.server.playwright.dialog import DialogOpened
from envs.browser.server.playwright.view import View
from envs.browser.server.playwright.window import Window
from envs.browser.server.secrets import NO_SECRETS, Secrets
from envs.browser.server.sites import RunningSite, Sites, per_session
from envs.browser.server.task_code import code_error, outcome_of, run_code, task_error
from envs.browser.server.task_window import task_window
from envs.browser.task_file import TaskFile
from envs.browser.web_task import Outcome, WebTask


class WebSession:
    """Runs tasks of a file in one Chromium.

    Args:
        browser: the Chromium.
        file: the tasks.
        sites: the sites that all sessions share.
        secrets: values that no observation shows.

    Attributes:
        window: the window of the episode, if there is one.
        on_window: awaited with the window of each episode, before the task's `setup`.
    """

    def __init__(
        self,
        browser: PlaywrightChromium,
        file: TaskFile,
        sites: Sites,
        secrets: Secrets = NO_SECRETS,
    ):
        self.browser, self.secrets = browser, secrets
        self.on_window: Callable[[Window], Awaitable[None]] | None = None
        self._file = file
        self._sites = sites
        self._own_sites: dict[str, RunningSite] = {}
        self._site: RunningSite | None = None
        self.window: Window | None = None
        self._task: WebTask | None = None  # None: no episode is running
        self._goal, self._turn = "", 0
        self._screenshot = self._final_page = self._drawn = False
        self._picture: str | None = None

    async def open(self) -> None:
        """Do nothing: each episode opens a window of its own."""

    async def close(self) -> None:
        """Close the window (not a tab in its user's browser), and stop the session's own apps."""
        try:
            await self._end(close=not self.browser.is_shared)
        finally:
            for site in self._own_sites.values():
                await asyncio.to_thread(site.stop)

    async def reset(
        self, task_name: str, seed: int, *, screenshot: bool = False, final_page: bool = True
    ) -> dict[str, Any]:
        """Start an episode and return its first observation; see `Session.reset`.

        Raises:
            TaskError: there is no such task, or its own code failed.
            SessionError, BrowserError: the infrastructure failed.
        """
        await self._end()
        task = copy.copy(self._file.find(task_name))
        self._screenshot, self._final_page = screenshot, final_page
        self._site = await self._site_of(task)
        task.url, task.session_id, task.answer = self._site.url, uuid.uuid4().hex, None
        window = self.window = task_window(self.browser, task, self._file.folder_of(task))
        await window.open()
        if self.on_window is not None:
            await self.on_window(window)
        rng = random.Random(f"{task.name}/{seed}")
        self._goal = await self._run(
            task, "setup", task.setup((await window.tabs.front()).page, rng)
        )
        if not isinstance(self._goal, str) or not 0 < len(self._goal) <= MAX_GOAL:
            raise task_error(task, f"setup must return the goal as a text, got {self._goal!r:.80}")
        window.dialogs.interactive = True
        await self._settle(window)
        window.tabs.refusals()  # what frames asked for while the page loaded
        self._turn, self._task = 0, task
        observation = await self._observation(task, Outcome())
        if observation["url"] == "about:blank" and not simplify_axtree(observation["axtree_txt"]):
            raise task_error(task, "setup left the page empty: does it await page.goto(...)?")
        return observation

    async def step(self, action: Action) -> dict[str, Any]:
        """Execute one action and return its outcome.

        Raises:
            TaskError: the task's own code failed.
            SessionError: no episode is running, or the site's app has ended.
            BrowserError: the infrastructure failed.
        """
        task, window = self._task, self.window
        if task is None or window is None:
            raise SessionError("no episode is running: reset first")
        error = ""
        try:
            _check_allowed(task, action, self._drawn)
            if action.name == "answer":
                task.answer = str(action.args[0])
            else:
                await window.act(self.secrets.revealed(action))
        except ActionRefused as refusal:
            error = f"{action.name} failed: {refusal}"
        except DialogOpened:
            pass
        await self._settle(window)
        for reason in window.tabs.refusals()[:1]:
            error = error or f"{action.name} failed: {reason}"
        self._turn += 1
        outcome = Outcome()
        if window.dialogs.waiting is None:
            outcome = await self._evaluate(task, window)
        if self._site is None or not self._site.alive:
            raise SessionError(f"the app of {task.name} has ended")
        ended = outcome.done or task.answer is not None or self._turn >= task.max_turns
        outcome = outcome._replace(done=ended)
        if ended:
            self._task = None
        observation = await self._observation(task, outcome, error)
        if ended:
            window.dialogs.interactive = False
            await self._run(task, "teardown", task.teardown((await window.tabs.front()).page))
        return observation

    async def _end(self, *, close: bool = True) -> None:
        """End the episode that is running, if there is one, and close its window."""
        task, self._task = self._task, None
        window, self.window = self.window, None
        if window is None:
            return
        if task is not None and self.browser.alive:
            window.dialogs.interactive = False
            await self._run(task, "teardown", task.teardown((await window.tabs.front()).page))
        if close:
            self.browser.run(_close(window))

    async def _site_of(self, task: WebTask) -> RunningSite:
        if not per_session(task):
            return await self._sites.shared(task)
        key = repr(task.site)
        site = self._own_sites.get(key)
        if site is None or not site.alive:
            if site is not None:
                await asyncio.to_thread(site.stop)
            site = self._own_sites[key] = await self._sites.start(task)
        return site

    async def _settle(self, window: Window) -> None:
        try:
            await window.settle()
        except DialogOpened:
            return

    async def _evaluate(self, task: WebTask, window: Window) -> Outcome:
        window.dialogs.interactive = False
        page = (await window.tabs.front()).page
        verdict = await self._run(task, "evaluate", task.evaluate(page))
        window.dialogs.interactive = True
        return outcome_of(task, verdict)

    async def _run(self, task: WebTask, what: str, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._site is not None
        return await run_code(task, what, work, self.browser, self._site)

    async def _observation(
        self, task: WebTask, outcome: Outcome, error: str = ""
    ) -> dict[str, Any]:
        assert self.window is not None
        view = View("", self.window.tabs.url)
        if not outcome.done or self._final_page or self._screenshot:
            view = await self.window.look()
            view.text = self.secrets.hide_in_tree(view.text)
            view.names = {bid: self.secrets.hide(name) for bid, name in view.names.items()}
        drawn = drawn_metadata(view.drawn, self.secrets)
        metadata: dict[str, Any] = {
            "task_name": task.name,
            "success": outcome.success,
            "raw_reward": outcome.reward,
            "left_out": view.left_out | drawn.pop("left_out", {}),
            "names": view.names,
            "actions": list(task.actions),
            "deterministic": bool(task.deterministic),
            "demonstration": "" if outcome.done else self._demonstration(task, view),
            **drawn,
        }
        self._drawn = "drawings" in metadata
        if POINT_ACTIONS.keys() & set(task.actions):
            metadata["places"] = view.boxes
        if self._screenshot:
            if self.window.dialogs.waiting is None:  # a page with a dialog cannot be drawn
                tab = await self.window.tabs.front()
                self._picture = await covered_screenshot(tab, self.secrets)
            metadata["boxes"] = view.boxes
        return {
            "goal": self.secrets.hide(self._goal),
            "axtree_txt": view.text,
            "url": self.secrets.hide(view.url),
            "screenshot": self._picture if self._screenshot else None,
            "error": self.secrets.hide(error),
            "last_action_error": bool(error),
            "done": outcome.done,
            "reward": outcome.reward,
            "metadata": metadata,
        }

    def _demonstration(self, task: WebTask, view: View) -> str:
        if type(task).demonstrate is WebTask.demonstrate:
            return ""
        try:
            return str(task.demonstrate(simplify_axtree(view.text, view.names), self._turn))
        except (LookupError, StopIteration):
            return ""  # the page lacks what it looks for: the agent went another way
        except Exception as error:
            raise code_error(task, "demonstrate", error) from error


def _check_allowed(task: WebTask, action: Action, drawn: bool) -> None:
    allowed = {*task.actions, *(POINT_ACTIONS if drawn else ())}
    if action.name in EXTRA_ACTIONS.keys() - allowed:
        raise ActionRefused(f"this task has no action {format_action(action):.80}")


async def _close(window: Window) -> None:
    try:
        await window.close()
    except BrowserError:
        return  # the browser is gone, and the window with it
