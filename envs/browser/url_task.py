"""A goal on a page that is there already, as a task."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from envs.base import TaskError
from envs.browser.web_task import WebTask

if TYPE_CHECKING:
    from playwright.async_api import Page


class UrlTask(WebTask):
    """Opens an address with a goal; it has a check only if it is told what the page shows then.

    Args:
        address: of the page.
        goal: in words, as the model reads it.
        until: a text that a page shows once the goal is reached, upper and lower case alike; empty
            for none: then no episode succeeds.
        max_turns: maximum number of actions.
        allowed_origins: origins that its pages may load from, besides the address's own.
        actions: what the agent may do besides the usual.
        viewport: width and height of the window in pixels.
    """

    name = "act"

    def __init__(
        self,
        address: str,
        goal: str,
        *,
        until: str = "",
        max_turns: int = 10,
        allowed_origins: Sequence[str] = (),
        actions: Sequence[str] = (),
        viewport: tuple[int, int] = (800, 600),
    ):
        super().__init__(
            site=address,
            max_turns=max_turns,
            allowed_origins=allowed_origins,
            actions=actions,
            viewport=viewport,
        )
        self.address, self.goal, self.until = address, goal, until

    async def setup(self, page: Page, rng: Random) -> str:
        """Open the address."""
        await page.goto(self.address, wait_until="domcontentloaded")
        if await self.evaluate(page):
            raise TaskError(f"{self.address} shows {self.until!r} before the first action")
        return self.goal

    async def evaluate(self, page: Page) -> bool:
        """Look for the text."""
        return bool(self.until) and await page.get_by_text(self.until).first.is_visible()
