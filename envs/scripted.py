"""An environment without a browser: small, deterministic, of one or two turns."""

from __future__ import annotations

import random

from envs.base import EnvError, Observation, StepResult, Task, TaskError
from envs.browser.actions import InvalidAction, parse_action
from envs.browser.prompts import page_messages

WORDS = ("apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "horse")

TASKS = {"click-word": 1, "click-two-words": 2}
"""Number of words to click, in the order of the goal, by task name."""


class ScriptedEnv:
    """A page of numbered words; clicking those the goal names, in order, succeeds.

    A wrong word ends the episode with reward 0, the last right one with reward 1.

    Args:
        fail_at: which call of reset or step raises EnvError, counted from 1; 0 for none.
    """

    def __init__(self, fail_at: int = 0):
        self.fail_at = fail_at
        self.calls = 0
        self.closed = False
        self._words: dict[str, str] = {}
        self._left: list[str] = []
        self._history: list[str] = []
        self._goal = ""
        self._dead = False

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode of `click-word` or `click-two-words`; there are no pictures."""
        self._count()
        if task.name not in TASKS:
            raise TaskError(f"unknown task {task.name!r}; tasks: {', '.join(TASKS)}")
        rng = random.Random(f"{task.name}/{task.seed}")
        ids = rng.sample(range(10, 100), 4)
        self._words = dict(zip(map(str, ids), rng.sample(WORDS, 4), strict=True))
        self._left = rng.sample(list(self._words.values()), TASKS[task.name])
        self._history = []
        self._goal = f"Click {' and then '.join(self._left)}."
        return self._observe("")

    async def step(self, text: str) -> StepResult:
        """Click a word.

        Raises:
            RuntimeError: no episode is running.
            EnvError: this is call `fail_at`, or a later one.
        """
        self._count()
        if not self._left:
            raise RuntimeError("no episode is running: call reset first")
        try:
            action = parse_action(text)
        except InvalidAction as error:
            return StepResult(self._observe(str(error)), 0.0, done=False, valid_action=False)
        if action.name != "click" or action.ids[0] not in self._words:
            refusal = f"there is nothing to do for {text.strip()} on the page"
            return StepResult(self._observe(refusal), 0.0, done=False, valid_action=False)
        self._history.append(text.strip())
        right = self._words[action.ids[0]] == self._left.pop(0)
        done = not right or not self._left
        if done:
            self._left = []
        success = right and done
        return StepResult(self._observe(""), float(success), done=done, success=success)

    def demonstrate(self) -> str:
        """Return the click on the next word of the goal, empty if no episode is running."""
        return "".join(f"click({n!r})" for n, w in self._words.items() if w in self._left[:1])

    async def close(self) -> None:
        """End the environment; fine to call twice."""
        self.closed = self._dead = True

    def _count(self) -> None:
        self.calls += 1
        self._dead = self._dead or self.calls == self.fail_at
        if self._dead:
            raise EnvError("this environment is dead: take a fresh one")

    def _observe(self, error: str) -> Observation:
        page = "\n".join(f"[{number}] text {word!r}" for number, word in self._words.items())
        return Observation(
            messages=page_messages(self._goal, page, self._history, error),
            goal=self._goal,
            page=page,
            error=error,
            actions=tuple(f"click({number!r})" for number in self._words),
        )
