"""The answer format that a run names: one of ours, or a class in a file of the user's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from envs.base import Message, TaskError
from envs.browser.actions import EXTRA_ACTIONS, Action, InvalidAction, format_action, parse_action
from envs.browser.foreign_text import brief, one_line
from envs.browser.prompts import ACTION, Prompt
from envs.browser.task_file import line_of, load_file
from envs.browser.think_prompt import ThinkPrompt

ANSWERS: Mapping[str, Prompt] = {"action": ACTION, "think": ThinkPrompt()}
"""Our formats by name."""

_ADDRESS = re.compile(r"(.+\.py):([A-Za-z_]\w*)", re.DOTALL)
_ROLES = {"system", "user", "assistant"}
_PROBES = (Action("click", ("12",)), Action("fill", ("12", "two words")))


def find_prompt(answer: str = "action", address: str = "") -> Prompt:
    """Return an answer format.

    Args:
        answer: a name of `ANSWERS`, if there is no address.
        address: `file.py:Class` of a subclass of `Prompt`; empty for none.

    Raises:
        TaskError: the file cannot be used, it has no such class, or that is not a format; one line
            that names both.
    """
    if not address:
        return ANSWERS[answer]
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise TaskError(
            f"expected the file and the class of a prompt, such as my_prompt.py:MyPrompt, got "
            f"{address!r:.120}"
        )
    path, name = match.groups()
    module = load_file(path, "a prompt")
    kind = vars(module).get(name)
    if not isinstance(kind, type) or not issubclass(kind, Prompt):
        found = ", ".join(
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__
        )
        raise TaskError(
            f"{module.__file__}: expected {name} to be a subclass of envs.browser.prompts.Prompt; "
            f"classes of the file: {found or 'none'}"
        )
    prompt = UserPrompt(kind)
    prompt.check()
    return prompt


class UserPrompt(Prompt):
    """A format of the user's own: what goes wrong in its methods is a TaskError of one line.

    It is never an invalid action, for which the model would be to blame, but for the
    `InvalidAction` that its `parse` raises.

    Args:
        kind: the class, made without arguments.
    """

    def __init__(self, kind: type[Prompt]):
        self._kind = kind
        if kind.parse is Prompt.parse:
            raise self._error("it must define parse(self, text, extra)")
        try:
            self._own = kind()
        except Exception as error:
            raise self._failed("__init__", error) from error

    def check(self) -> None:
        """Try the format on a small page, and on its own worked examples.

        Raises:
            TaskError: it cannot be used.
        """
        self.messages("Go.", "button 'OK' [12]", (), "")
        for probe in _PROBES:
            self._check_reads(self.write(probe), "write", probe)
        examples = (*self._own.examples, *self._own.field_examples)
        for number, (*_, completion) in enumerate(examples, 1):
            self._check_reads(completion, f"example {number}")

    def messages(
        self,
        goal: str,
        page: str,
        history: Sequence[str],
        error: str,
        extra: Collection[str] = (),
    ) -> tuple[Message, ...]:
        """Build the chat, and check it."""
        return self._chat_of("messages", page, goal, page, history, error, extra)

    def around(self, content: str, extra: Collection[str] = ()) -> tuple[Message, ...]:
        """Build the chat around a recorded message, and check it."""
        return self._chat_of("around", content, content, extra)

    def parse(self, text: str, extra: Collection[str] = ()) -> Action:
        """Read a completion, and check the action."""
        if text.startswith("\ufffd"):
            raise InvalidAction(f"expected a completion without control tokens, got: {brief(text)}")
        action: Action = self._call("parse", "an Action", Action, text, extra)
        try:
            fits = parse_action(format_action(action), extra) == action
        except (InvalidAction, TypeError, AttributeError):
            fits = False
        if not fits:
            raise self._error(
                f"parse returned {brief(repr(action))}, which is not an action of the task"
            )
        return action

    def write(self, action: Action, thought: str = "") -> str:
        """Write a completion."""
        text: str = self._call("write", "a text", str, action, thought)
        return text

    def thought(self, text: str) -> str:
        """Return what a completion says before its action."""
        thought: str = self._call("thought", "a text", str, text)
        return thought

    def grammars(self, extra: Collection[str] = ()) -> Mapping[str, str]:
        """Return the format as grammars, by the name of their file."""
        found: Mapping[str, str] = self._call("grammars", "a mapping", Mapping, extra)
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise self._error("grammars must return texts by the names of their files")
        return found

    def _check_reads(self, text: str, what: str, expected: Action | None = None) -> None:
        try:
            found = self.parse(text, tuple(EXTRA_ACTIONS))
        except InvalidAction as error:
            raise self._error(f"parse does not read {brief(text)} of {what}: {error}") from error
        if expected not in (None, found):
            raise self._error(
                f"parse reads {brief(text)} of {what} as {format_action(found)}, expected "
                f"{format_action(expected or found)}"
            )

    def _chat_of(self, name: str, page: str, *arguments: Any) -> tuple[Message, ...]:
        chat = self._call(name, "a list of messages", list | tuple, *arguments)
        for message in chat:
            if (
                not isinstance(message, dict)
                or message.keys() != {"role", "content"}
                or message["role"] not in _ROLES
                or not isinstance(message["content"], str)
            ):
                raise self._error(
                    f'{name} must return messages such as {{"role": "user", "content": "text"}}, '
                    f"got {brief(repr(message))}"
                )
        if not chat or chat[-1]["role"] != "user" or page not in chat[-1]["content"]:
            raise self._error(
                f"the last message of {name} must be the user's and hold the page as it is"
            )
        return tuple(chat)

    def _call(self, name: str, expected: str, kind: Any, *arguments: Any) -> Any:
        """Call a method of the class, which returns what is expected: an instance of `kind`.

        Raises:
            InvalidAction: `parse` did.
            TaskError: it raised anything else, or returned something else.
        """
        try:
            found = getattr(self._own, name)(*arguments)
        except InvalidAction as error:
            if name == "parse":
                raise InvalidAction(one_line(str(error))) from error
            raise self._failed(name, error) from error
        except Exception as error:
            raise self._failed(name, error) from error
        if not isinstance(found, kind):
            raise self._error(f"{name} must return {expected}, got {brief(repr(found))}")
        return found

    def _failed(self, name: str, error: BaseException) -> TaskError:
        reason = one_line(f"{type(error).__name__}: {error}")
        return self._error(f"{name}, line {line_of(self._kind, error)}, raised {reason}")

    def _error(self, reason: str) -> TaskError:
        file = sys.modules[self._kind.__module__].__file__
        return TaskError(f"{file}: {self._kind.__name__}: {reason}")
