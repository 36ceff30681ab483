"""One session: a page that plays one MiniWoB task after another."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from envs.browser.actions import Action
from envs.browser.miniwob.tasks import Episode, Outcome, Script, find_task, tree_text
from envs.browser.server.cdp.actions import act
from envs.browser.server.cdp.page import Page, PageLeft, Refused

ATTEMPTS = 5  # at looking at a page that is being left


class SessionError(RuntimeError):
    """The session cannot answer: its browser died, or it was used out of turn."""


class Session:
    """A page, kept from episode to episode."""

    def __init__(self, page: Page):
        self.page = page
        self._episode: Episode | None = None  # None: no episode is running
        self._goal = ""
        self._screenshot = self._final_page = False

    async def reset(
        self, task_name: str, seed: int, *, screenshot: bool = False, final_page: bool = True
    ) -> dict[str, Any]:
        """Start an episode and return its first observation.

        Args:
            task_name: a MiniWoB task, with or without `miniwob.` in front.
            seed: of the task.
            screenshot: True to have a picture in every observation, and in its metadata the
                `boxes` of the elements by their ids: (x, y, width, height) in its pixels.
            final_page: False to leave the tree of the finished page out.

        Raises:
            TaskError: there is no such task.
            CDPError: the machinery failed.
        """
        self._episode = None
        episode = Episode(find_task(task_name), seed)
        self._screenshot, self._final_page = screenshot, final_page
        await self.page.goto(episode.url)
        page, tree = await self._look(episode, episode.setup)
        self._goal = episode.goal(page["begun"])
        outcome = episode.outcome(page["url"], page["checked"])
        self._episode = episode
        return await self._observation(outcome._replace(reward=0.0, done=False), page, tree)

    async def step(self, action: Action) -> dict[str, Any]:
        """Do one action and return what it led to.

        Raises:
            SessionError: there is no episode, or it is over.
            CDPError: the machinery failed.
        """
        if self._episode is None:
            raise SessionError("no episode is running: reset first")
        episode, error = self._episode, ""
        try:
            await act(self.page, action)
        except Refused as refusal:
            error = f"{action.name} failed: {refusal}"
        page, tree = await self._look(episode)
        outcome = episode.outcome(page["url"], page["checked"])
        if outcome.done:
            self._episode = None
        return await self._observation(outcome, page, tree, error)

    async def _observation(
        self, outcome: Outcome, page: dict[str, Any], tree: str, error: str = ""
    ) -> dict[str, Any]:
        picture = None
        metadata = {"success": outcome.reward > 0, "raw_reward": outcome.raw_reward}
        if self._screenshot:
            picture = (await self.page.send("Page.captureScreenshot", format="png"))["data"]
            metadata["boxes"] = page["boxes"]
        return {
            "goal": self._goal,
            "axtree_txt": tree,
            "url": page["url"],
            "screenshot": picture,
            "error": error,
            "last_action_error": bool(error),
            "done": outcome.done,
            "reward": outcome.reward,
            "metadata": metadata,
        }

    async def _look(
        self, episode: Episode, setup: Sequence[Script] = ()
    ) -> tuple[dict[str, Any], str]:
        """Let the page settle, ask it, and read its tree ("" where nobody wants it)."""
        asked = [setup, episode.check, episode.url, self._final_page, self._screenshot]
        arguments = json.dumps(asked)[1:-1]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                page = await self.page.run(f"browserServer.look({arguments})")
                if not page["marked"]:
                    return page, ""
                tree = self.page.send("Accessibility.getFullAXTree")
                unmarked = self.page.run("browserServer.unmark()")
                return page, tree_text((await asyncio.gather(tree, unmarked))[0])
            except PageLeft:
                if attempt == ATTEMPTS:
                    raise
                await self.page.loaded()
        raise AssertionError("unreachable")
