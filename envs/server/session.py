"""One session: a page in its own browser context, playing one MiniWoB task after another.

The task (its seed, its goal, its reward), the marks on the elements, the accessibility
tree and the actions are BrowserGym's own code; the chat window, the slow motion, the fixed
sleeps, the DOM snapshot and the picture nobody asked for are left out.
"""

from __future__ import annotations

import base64
import difflib
import os
import time
from functools import cache
from typing import Any

import playwright.sync_api as playwright

from envs.actions import Action
from envs.base import TaskError
from envs.server.chromium import miniwob_url

VIEWPORT: playwright.ViewportSize = {"width": 332, "height": 214}
"""Size of the page in pixels: MiniWoB's, as BrowserGym sets it."""

MARKING_ATTEMPTS = 5
ACTION_ATTEMPTS = 3
SETTLE_ATTEMPTS = 5

# What Playwright's log says when the page, not a slow machine, stopped an action.
_REFUSALS = {
    "element is not visible": "the element is not visible",
    "element is not enabled": "the element is not enabled",
    "element is not editable": "the element is not editable",
    "intercepts pointer events": "another element covers it",
    "outside of the viewport": "the element is outside of the window",
    "did not find some options": "there is no such option",
}
_MARKING_RACES = (
    "Frame was detached",
    "Frame has been detached",
    "Frame with the given frameId is not found",
    "Execution context was destroyed",
    "Cannot mark a child frame without a bid",
    "Cannot read properties of undefined",
)

# Two frames let handlers and layout run; animations get a bounded time to end.
_SETTLE = """async () => {
  const frame = () => new Promise(resolve => requestAnimationFrame(resolve));
  const moving = () => (window.jQuery && jQuery.timers && jQuery.timers.length > 0)
    || document.getAnimations().some(
      a => a.playState === 'running' && a.effect.getComputedTiming().endTime < 5000);
  await frame();
  await frame();
  const end = performance.now() + 1000;
  while (moving() && performance.now() < end) await frame();
}"""
# jQuery UI opens its menu after a delay of 300 ms.
_MENU_OPEN = "() => [...document.querySelectorAll('.ui-autocomplete')].some(m => m.offsetHeight)"


class SessionError(RuntimeError):
    """The session cannot answer: its browser died, or it was used out of turn."""


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


class Session:
    """A browser context with one page, kept from episode to episode.

    Args:
        browser: the Chromium it lives in.
    """

    def __init__(self, browser: playwright.Browser):
        self.browser = browser
        self.context = browser.new_context(viewport=VIEWPORT)
        self.context.set_default_timeout(5_000)
        self.page = self.context.new_page()
        self.task: Any = None
        self.goal = ""
        self.done = True
        self.screenshot = False

    def reset(self, task_class: type, seed: int, screenshot: bool) -> dict[str, Any]:
        """Start an episode and return its first observation."""
        self.task = task_class(seed=seed)
        self.screenshot = screenshot
        self.goal, info = self.task.setup(self.page)
        self.done = False
        self._settle()
        return self._observe(reward=0.0, raw_reward=float(info["RAW_REWARD_GLOBAL"]), error="")

    def step(self, action: Action) -> dict[str, Any]:
        """Do one action and return what it led to.

        Raises:
            SessionError: there is no episode, it is over, or the machinery failed.
        """
        if self.done:
            raise SessionError("no episode is running: reset first")
        error = self._act(action)
        self._settle()
        reward, self.done, _, info = self.task.validate(self.page, [])
        raw_reward = float(info.get("RAW_REWARD_GLOBAL", 0.0))
        return self._observe(reward=float(reward), raw_reward=raw_reward, error=error)

    def close(self) -> None:
        """Close the context and its page."""
        self.context.close()

    def _act(self, action: Action) -> str:
        """Do the action; return why it failed, empty if it did not."""
        from browsergym.core.action import functions

        functions.page, functions.demo_mode = self.page, "off"
        args = list(action.args)
        if action.name == "noop":
            args = [0]  # BrowserGym's default waits a second
        if action.name == "fill" and self._has_menu(str(args[0])):
            args.append(True)
        for _ in range(ACTION_ATTEMPTS):
            try:
                getattr(functions, action.name)(*args)
                if len(args) == 3:
                    self._wait_for_menu()
                return ""
            except ValueError as error:
                return f"{type(error).__name__}: {error}"
            except playwright.TimeoutError as error:
                # BrowserGym waits 500 ms for the element to be ready. A machine under load
                # can miss that, and then it is no answer of the page: try again.
                if action.name == "drag_and_drop":
                    self.page.mouse.up()
                late = error
                if "action done" in str(error):
                    return ""  # only what follows the click was late
                for refusal in _REFUSALS:
                    if refusal in str(error):
                        return f"{action.name} failed: {_REFUSALS[refusal]}"
            except playwright.Error as error:
                if self.lost():
                    raise
                return f"{type(error).__name__}: {error}"
        raise SessionError(f"{action.name} got no answer from the page: {late}")

    def _settle(self) -> None:
        for attempt in range(1, SETTLE_ATTEMPTS + 1):
            try:
                self.page.wait_for_load_state("domcontentloaded")
                self.page.evaluate(_SETTLE)
                return
            except playwright.Error as error:
                # The action opened another page, whose load ends what ran in this one.
                if attempt == SETTLE_ATTEMPTS or not _left_page(error):
                    raise

    def _has_menu(self, bid: str) -> bool:
        from browsergym.core.action.utils import get_elem_by_bid

        try:
            element = get_elem_by_bid(self.page, bid)
        except ValueError:
            return False
        return element.evaluate("e => e.classList.contains('ui-autocomplete-input')")

    def _wait_for_menu(self) -> None:
        try:
            self.page.wait_for_function(_MENU_OPEN, timeout=1_000)
        except playwright.TimeoutError:
            return  # no entry fits the text

    def lost(self) -> bool:
        """Tell whether the page or its browser is gone."""
        if self.page.is_closed() or not self.browser.is_connected():
            return True
        try:
            self.page.evaluate("1")
        except playwright.Error:
            return True
        return False

    def _observe(self, reward: float, raw_reward: float, error: str) -> dict[str, Any]:
        return {
            "goal": self.goal,
            "axtree_txt": self._axtree(),
            "url": self.page.url,
            "screenshot": self._screenshot() if self.screenshot else None,
            "error": error,
            "last_action_error": bool(error),
            "done": bool(self.done),
            "reward": reward,
            "metadata": {"success": reward > 0, "raw_reward": raw_reward},
        }

    def _axtree(self) -> str:
        from browsergym.core import observation as browsergym
        from browsergym.utils.obs import IGNORED_AXTREE_ROLES, flatten_axtree_to_str

        for attempt in range(1, MARKING_ATTEMPTS + 1):
            last = attempt == MARKING_ATTEMPTS
            try:
                browsergym._pre_extract(self.page, lenient=last)
                tree = browsergym.extract_merged_axtree(self.page)
                browsergym._post_extract(self.page)
                break
            except (playwright.Error, browsergym.MarkingError) as error:
                if last or not any(race in str(error) for race in _MARKING_RACES):
                    raise
                browsergym._post_extract(self.page)
                time.sleep(0.05)
        # BrowserGym does not know InlineTextBox, which repeats the text above it. Generic
        # nodes stay: in click-link they alone carry an id.
        roles = [*IGNORED_AXTREE_ROLES, "InlineTextBox"]
        return flatten_axtree_to_str(tree, skip_generic=False, ignored_roles=roles)

    def _screenshot(self) -> str:
        return base64.b64encode(self.page.screenshot()).decode()


def _left_page(error: playwright.Error) -> bool:
    return "Execution context was destroyed" in str(error) or "navigat" in str(error)
