"""One session: a page on which one MiniWoB task runs after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from envs.browser.actions import POINT_ACTIONS, SITE_ACTIONS, Action
from envs.browser.miniwob.names import POINT_TASKS, TIMED_TASKS
from envs.browser.miniwob.tasks import Episode, Outcome, Script, find_task
from envs.browser.server.drawn import drawn_metadata
from envs.browser.server.errors import ActionRefused, NavigatedAway, SessionError
from envs.browser.server.playwright.page import Page
from envs.browser.server.tree import tree_text

ATTEMPTS = 5  # at reading a page that keeps navigating


class Session:
    """A page that is kept from episode to episode."""

    def __init__(self, page: Page):
        self.page = page
        self._episode: Episode | None = None  # None: no episode is running
        self._goal = ""
        self._screenshot = self._final_page = self._deterministic = False
        self._points = self._drawn = False

    async def open(self) -> None:
        """Open the page."""
        await self.page.open()

    async def close(self) -> None:
        """Close the page."""
        await self.page.close()

    async def reset(
        self, task_name: str, seed: int, *, screenshot: bool = False, final_page: bool = True
    ) -> dict[str, Any]:
        """Start an episode and return its first observation.

        Args:
            task_name: a MiniWoB task, with or without the prefix `miniwob.`.
            seed: seed of the task.
            screenshot: True to include a screenshot in every observation, and in its metadata
                the `boxes` of the elements by their ids: (x, y, width, height) in pixels.
            final_page: False to leave out the tree of the finished page.

        Raises:
            TaskError: there is no such task.
            BrowserError: the infrastructure failed.
        """
        self._episode = None
        episode = Episode(find_task(task_name), seed)
        self._screenshot, self._final_page = screenshot, final_page
        name = task_name.removeprefix("miniwob.")
        self._deterministic = name not in TIMED_TASKS
        self._points = name in POINT_TASKS
        await self.page.goto(episode.url)
        page, tree = await self._look(episode, episode.setup)
        self._goal = episode.goal(page["begun"])
        outcome = episode.outcome(page["url"], page["checked"])
        self._episode = episode
        begun = outcome._replace(success=False, done=False, success_browsergym=False)
        return await self._observation(begun, page, tree)

    async def step(self, action: Action) -> dict[str, Any]:
        """Execute one action and return its outcome.

        Raises:
            SessionError: no episode is running.
            BrowserError: the infrastructure failed.
        """
        if self._episode is None:
            raise SessionError("no episode is running: reset first")
        episode, error = self._episode, ""
        try:
            if action.name in SITE_ACTIONS:
                raise ActionRefused(f"MiniWoB's tasks have no action {action.name}")
            if action.name in POINT_ACTIONS and not (self._points or self._drawn):
                raise ActionRefused(f"this page has no action {action.name}")
            await self.page.perform(action)
        except ActionRefused as refusal:
            error = f"{action.name} failed: {refusal}"
        page, tree = await self._look(episode)
        outcome = episode.outcome(page["url"], page["checked"])
        if outcome.done:
            self._episode = None
        return await self._observation(outcome, page, tree, error)

    async def _observation(
        self, outcome: Outcome, page: dict[str, Any], tree: str, error: str = ""
    ) -> dict[str, Any]:
        screenshot = None
        metadata: dict[str, Any] = {
            "success": outcome.success,
            "success_browsergym": outcome.success_browsergym,
            "raw_reward": outcome.raw_reward,
            "deterministic": self._deterministic,
            "names": page["names"],
        }
        if self._points:
            metadata |= {"actions": list(POINT_ACTIONS), "places": page["boxes"]}
        metadata |= drawn_metadata(page["drawn"])
        self._drawn = "drawings" in metadata
        if self._screenshot:
            screenshot = await self.page.screenshot()
            metadata["boxes"] = page["boxes"]
        return {
            "goal": self._goal,
            "axtree_txt": tree,
            "url": page["url"],
            "screenshot": screenshot,
            "error": error,
            "last_action_error": bool(error),
            "done": outcome.done,
            "reward": float(outcome.success),
            "metadata": metadata,
        }

    async def _look(
        self, episode: Episode, setup: Sequence[Script] = ()
    ) -> tuple[dict[str, Any], str]:
        """Let the page settle, run the scripts, and read its tree ("" if it is not wanted)."""
        located = self._screenshot or self._points
        arguments = [setup, episode.check, episode.url, self._final_page, located]
        look = f"browserServer.look({json.dumps(arguments)[1:-1]})"
        for attempt in range(1, ATTEMPTS + 1):
            try:
                page = await self.page.run(look)
                if not page["marked"]:
                    return page, ""
                return page, tree_text({"main": await self.page.tree()})
            except NavigatedAway:
                if attempt == ATTEMPTS:
                    raise
                await self.page.loaded()
        raise AssertionError("unreachable")
