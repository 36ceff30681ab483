"""The contract of an environment, which communicates in chat messages alone.

An environment turns its state into the messages that a language model reads, and reads the
model's text as an action. Tokens, tensors and training belong elsewhere, so any class with the
three coroutines of `Env` can be trained on; `envs.check_env` tests the whole contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

Message = dict[str, str]
"""One chat message: `{"role": "system" | "user" | "assistant", "content": text}`."""

Box = tuple[float, float, float, float]
"""A rectangle on a screenshot: left, top, width and height in pixels."""


@dataclass(frozen=True, order=True)
class Task:
    """A task and the seed of its start: equal tasks start from equal observations.

    Attributes:
        name: name of the task.
        seed: random seed of the start.
        variant: 1, 2, ... for the same start with its elements numbered in another way, where an
            environment numbers them (see `Renumberer`).
    """

    name: str
    seed: int
    variant: int = 0


@dataclass(frozen=True)
class Observation:
    """What the policy sees before it acts.

    Attributes:
        messages: the chat that the model continues; the last message is the user's.
        goal: the instruction in words, the same for the whole episode.
        page: the state as the model reads it (for a browser: the accessibility tree), one
            element per line. If the last message contains it verbatim, it can be cut.
        url: address of the page, empty if there is none.
        error: why the last action was refused or failed, empty if it did not.
        actions: texts of actions that are possible now; a random agent chooses from them.
        screenshot: the page as PNG bytes, only if it was asked for.
        deterministic: True if equal actions after equal starts always lead to equal observations,
            rewards and ends. Then what episodes do alike may be executed once.
    """

    messages: tuple[Message, ...]
    goal: str = ""
    page: str = ""
    url: str = ""
    error: str = ""
    actions: tuple[str, ...] = ()
    screenshot: bytes | None = None
    deterministic: bool = False

    def cut(self, lines: int) -> Observation:
        """Return a copy with only the first lines of the page, and a note of how many are missing.

        The rest of the messages stays: goal, history, error.

        Args:
            lines: number of lines of the page to keep, at least 0.
        """
        every = self.page.splitlines()
        if lines >= len(every):
            return self
        return self._with("\n".join([*every[:lines], f"({len(every) - lines} more lines)"]))

    def hide(self) -> Observation:
        """Return a copy without the page, for the blind agent.

        Raises:
            TaskError: the last message does not contain the page verbatim.
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
    """The outcome of one action.

    Attributes:
        observation: the state after the action.
        reward: reward of this step.
        done: True if the episode is over; then `step` must not be called again.
        success: True if this step solved the whole task.
        valid_action: False if the text was not an action of this environment, or named an
            element that does not exist. An invalid action changes nothing.
        acted_on: rectangles of the action's elements on the screenshot before it; empty if
            there was no screenshot, they were out of view, or the action was refused or failed.
        info: anything else, for example `raw_reward`; see `verdicts`.
    """

    observation: Observation
    reward: float
    done: bool
    success: bool = False
    valid_action: bool = True
    acted_on: tuple[Box, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def verdicts(self) -> dict[str, bool]:
        """Success by other rules, such as a benchmark's own: the entries `success_...` of `info`.

        Evaluations report them beside `success`.
        """
        return {name: bool(it) for name, it in self.info.items() if name.startswith("success_")}


class EnvError(RuntimeError):
    """The infrastructure failed (browser, server, network, deadline), not the policy.

    The episode has no outcome and no reward. The environment that raised it must not be used
    again: close it and take a fresh one.
    """


class TaskError(ValueError):
    """The task cannot be served, for example because its name is unknown; never retried."""


@runtime_checkable
class Env(Protocol):
    """One session of an environment; concurrent episodes need an instance each."""

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode; equal tasks give equal observations.

        Args:
            task: name, and the seed that fixes the start.
            screenshot: True to include a screenshot in every observation of this episode.

        Raises:
            TaskError: the task is not served here.
            EnvError: the infrastructure failed.
        """
        ...

    async def step(self, text: str) -> StepResult:
        """Execute the action that the model wrote.

        Args:
            text: the model's completion, unchanged. Parsing it is the environment's work; text
                that is not an action gives `valid_action=False`, not an exception.

        Raises:
            RuntimeError: no episode is running.
            EnvError: the infrastructure failed.
        """
        ...

    async def close(self) -> None:
        """Release what the session holds; safe to call twice, or after an EnvError."""
        ...


@runtime_checkable
class Demonstrator(Protocol):
    """An environment with a scripted solver: the oracle of evaluations and warm starts."""

    def demonstrate(self) -> str:
        """Return the scripted solver's action for the current observation.

        Returns:
            The text to pass to `step`; empty if there is no solver, the solver has no answer, or
            no episode is running.
        """
        ...


@runtime_checkable
class Renumberer(Protocol):
    """An environment whose numbers of elements differ between the variants of a task."""

    def renumbered(self, text: str) -> str:
        """Return an action of variant 0 with the numbers of the current observation.

        Returns:
            The text to pass to `step`; the same text if it names something that is not there.
        """
        ...


@runtime_checkable
class Formatter(Protocol):
    """An environment whose completions may say more than their action, such as a thought."""

    def read_action(self, text: str) -> tuple[str, str]:
        """Return the action of a completion in its plain form, and what is said before it.

        Returns:
            The action and the thought; two empty texts for what is not a completion.
        """
        ...

    def write_action(self, action: str, thought: str = "") -> str:
        """Return the completion for an action in its plain form, as a demonstration has it.

        Args:
            action: the action.
            thought: what to say before it; empty for what the environment makes of the action. A
                format without thoughts leaves it out.

        Returns:
            The text to pass to `step`; the action itself if it is none of this environment.

        Raises:
            TaskError: the thought cannot be said in this format.
        """
        ...


Refusals = Callable[[str], StepResult | None]
"""`(text) -> result`: what `step` returns for an invalid action, None for a valid one."""


@runtime_checkable
class Refuser(Protocol):
    """An environment that knows an invalid action without executing it.

    Such an action leaves no trace beyond the observation that refuses it.
    """

    def refusals(self) -> Refusals | None:
        """Return a function that refuses invalid actions at the current observation.

        It holds for this observation, also after the environment has gone on. None if there is
        no such function.
        """
        ...
