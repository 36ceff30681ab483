"""A small deterministic environment of one or two turns, for tests."""

from __future__ import annotations

import random
import re

from envs.base import EnvError, Observation, StepResult, Task, TaskError

SYSTEM = """Each line of the page is a word: [id] text 'word'.
Answer with exactly one action and nothing else:
click('id')"""

WORDS = ("apple", "brick", "cloud", "drum", "eagle", "flute", "grape", "horse")

TASKS = {"click-word": 1, "click-two-words": 2}
"""Number of words to click, in the order of the goal, by task name."""

_CLICK = re.compile(r"""click\((["'])([A-Za-z0-9]{1,12})\1\)""")
_SHOWN = 60  # characters of a refused text that the error repeats


class ScriptedEnv:
    """A page of numbered words; clicking those the goal names, in order, succeeds.

    A wrong word ends the episode with reward 0, the last right one with reward 1.

    Args:
        fail_at: number of the call of reset or step that raises EnvError, counted from 1;
            0 for none.

    Attributes:
        calls: calls of reset and step so far.
        closed: True after `close`.
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
        """Start an episode of `click-word` or `click-two-words`; there are no screenshots."""
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
        text = text.strip()
        click = _CLICK.fullmatch(text)
        if click is None:
            return self._refuse(f"expected one action such as click('12'), got: {_short(text)}")
        if click[2] not in self._words:
            return self._refuse(f"there is nothing to do for {text} on the page")
        self._history.append(text)
        right = self._words[click[2]] == self._left.pop(0)
        done = not right or not self._left
        if done:
            self._left = []
        success = right and done
        return StepResult(self._observe(""), float(success), done=done, success=success)

    def demonstrate(self) -> str:
        """Return the click on the next word of the goal, empty if no episode is running."""
        return "".join(f"click({n!r})" for n, w in self._words.items() if w in self._left[:1])

    async def close(self) -> None:
        """Close the environment; safe to call twice."""
        self.closed = self._dead = True

    def _count(self) -> None:
        self.calls += 1
        self._dead = self._dead or self.calls == self.fail_at
        if self._dead:
            raise EnvError("this environment is dead: take a fresh one")

    def _refuse(self, error: str) -> StepResult:
        return StepResult(self._observe(error), 0.0, done=False, valid_action=False)

    def _observe(self, error: str) -> Observation:
        page = "\n".join(f"[{number}] text {word!r}" for number, word in self._words.items())
        content = f"Goal: {self._goal}\nPage:\n{page}"
        if self._history:
            content += f"\nDone so far: {' '.join(self._history)}"
        if error:
            content += f"\nError: {error}"
        return Observation(
            messages=(
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": content},
            ),
            goal=self._goal,
            page=page,
            error=error,
            actions=tuple(f"click({number!r})" for number in self._words),
            deterministic=True,
        )


def _short(text: str) -> str:
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return text if text.isprintable() else ascii(text)
