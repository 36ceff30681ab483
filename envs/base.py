"""What an environment promises: it speaks chat messages, and nothing else.

An environment turns its state into the messages a language model reads, and takes the
model's text back as an action. Tokens, tensors and rewards' use belong elsewhere, so any
class with these three coroutines trains (see `check_env` for the whole contract).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

Message = dict[str, str]
"""One chat message: `{"role": "system" | "user" | "assistant", "content": text}`."""

Box = tuple[float, float, float, float]
"""A part of a screenshot: left, top, width, height, in its pixels."""


@dataclass(frozen=True, order=True)
class Task:
    """What to do and from which start: equal tasks start from the same observation."""

    name: str
    seed: int


@dataclass(frozen=True)
class Observation:
    """What the policy sees before it acts.

    Attributes:
        messages: the chat the model continues; the last message is the user's.
        goal: the instruction in words, the same for the whole episode.
        page: the state as the model reads it (for a browser: the accessibility tree), one
            element a line. Where it stands in the last message as it is, it can be cut.
        url: the page's address, empty where there is none.
        error: why the last action was refused or failed, empty if it did not.
        actions: action texts that can be done now; what a random policy chooses from.
        screenshot: the page as PNG bytes, only where it was asked for.
    """

    messages: tuple[Message, ...]
    goal: str = ""
    page: str = ""
    url: str = ""
    error: str = ""
    actions: tuple[str, ...] = ()
    screenshot: bytes | None = None

    def cut(self, lines: int) -> Observation:
        """The same with the first lines of the page alone, and a note of how many are missing.

        All else in the messages stays: goal, history, error.

        Args:
            lines: how many lines of the page stay, 0 or more.
        """
        every = self.page.splitlines()
        if lines >= len(every):
            return self
        return self._with("\n".join([*every[:lines], f"({len(every) - lines} more lines)"]))

    def hide(self) -> Observation:
        """The same with the page hidden: what the blind control sees.

        Raises:
            TaskError: the last message does not hold the page as it is.
        """
        if not self.page or self.page not in self.messages[-1]["content"]:
            raise TaskError("the last message does not hold the page, so it cannot be hidden")
        return self._with("(hidden)")

    def _with(self, page: str) -> Observation:
        before, found, after = self.messages[-1]["content"].rpartition(self.page)
        if not found:
            return self
        last = {**self.messages[-1], "content": before + page + after}
        return replace(self, page=page, messages=(*self.messages[:-1], last))


@dataclass(frozen=True)
class StepResult:
    """What one action led to.

    Attributes:
        observation: the state after the action.
        reward: the reward of this step.
        done: True if the episode is over; `step` may then not be called again.
        success: True if this step solved the task.
        valid_action: False if the text was no action of this environment, or named an
            element that is not there. An invalid action changes nothing.
        acted_on: where the action's elements were on the screenshot before it; none where there
            was no screenshot, they were out of sight, or the action was refused or failed.
        info: anything more, e.g. `raw_reward`.
    """

    observation: Observation
    reward: float
    done: bool
    success: bool = False
    valid_action: bool = True
    acted_on: tuple[Box, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)


class EnvError(RuntimeError):
    """The machinery failed (browser, server, network, deadline), not the policy.

    The episode has no outcome and no reward, and the environment that raised it may not be
    used again: close it and take a fresh one.
    """


class TaskError(ValueError):
    """The task cannot be served (an unknown name, say): a mistake, so never retried."""


@runtime_checkable
class Env(Protocol):
    """One session of an environment; several may run at once, each on its own instance."""

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode; equal tasks give equal observations.

        Args:
            task: which task, and the seed that fixes its start.
            screenshot: True to have a picture in every observation of this episode.

        Raises:
            TaskError: the task is not served here.
            EnvError: the machinery failed.
        """
        ...

    async def step(self, text: str) -> StepResult:
        """Do what the model said.

        Args:
            text: the model's answer as it stands; parsing it is the environment's work, and
                text that is no action is an answer with `valid_action=False`, no exception.

        Raises:
            EnvError: the machinery failed.
        """
        ...

    async def close(self) -> None:
        """Free what the session holds; calling it twice, or after an EnvError, is fine."""
        ...


@runtime_checkable
class Demonstrator(Protocol):
    """An environment with a scripted solver: the oracle, for warm starts and tests."""

    def demonstrate(self) -> str:
        """Return the action text of the scripted solver for the current observation.

        Returns:
            The text to pass to `step`; empty where there is no solver, it does not know what
            to do, or no episode is running.
        """
        ...
