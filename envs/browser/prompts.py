"""The chat around a page, and what a completion must be: the answer formats.

A format is a `Prompt`: `ActionPrompt`, the `ThinkPrompt` of `envs.browser.think_prompt`, or a class
in a file of the user's own (see `envs.browser.prompt_file`).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence

from envs.base import Message
from envs.browser.actions import (
    Action,
    InvalidAction,
    format_action,
    page_actions,
    parse_action,
    usage,
)
from envs.browser.grammar import action_gbnf, action_regex
from envs.browser.page_text import TEXT_ROLES

SYSTEM = """You control a web page. Each line of the page is an element: role 'name' [id].
Answer with exactly one action and nothing else:
click('id')
fill('id', 'text')
select_option('id', 'option')
press('id', 'key')
drag_and_drop('id', 'id')
scroll(0, 200)
noop()"""

Example = tuple[str, str, tuple[str, ...], str]
"""(goal, page, actions so far, completion) of an earlier turn of the chat."""

EXAMPLES: tuple[Example, ...] = (
    (
        "Press the button to go on.",
        "text 'Welcome back'\nbutton 'Continue' [9]",
        (),
        "click('9')",
    ),
    (
        "Open the settings.",
        "link 'Home' [31]\nlink 'Settings' [22]\nlink 'Help' [17]",
        (),
        "click('22')",
    ),
)
"""Worked examples, the same for every task, on pages that no task has."""

FIELD_EXAMPLES: tuple[Example, ...] = (
    (
        'Search for "red shoes".',
        "searchbox [41]\nbutton 'Go' [63]",
        (),
        "fill('41', 'red shoes')",
    ),
    (
        'Search for "red shoes".',
        "searchbox [41], value='red shoes'\nbutton 'Go' [63]",
        ("fill('41', 'red shoes')",),
        "click('63')",
    ),
)
"""More of them if the page has a text field; on others they lead a small model to fill buttons."""


class Prompt:
    """An answer format: how a page becomes a chat, and a completion an action.

    A subclass defines `parse`, `write` if a bare action is not a completion of it, and the texts.
    It keeps no state: all episodes share one, and several threads call it.

    Attributes:
        system: the system message; the task's own actions are added below it.
        examples: worked examples on pages that no task has, as earlier turns of the chat.
        field_examples: more of them if the page has a text field; on others they lead a small
            model to fill buttons.
    """

    system: str = SYSTEM
    examples: Sequence[Example] = ()
    field_examples: Sequence[Example] = ()

    def messages(
        self,
        goal: str,
        page: str,
        history: Sequence[str],
        error: str,
        extra: Collection[str] = (),
    ) -> tuple[Message, ...]:
        """Build the chat that the model continues.

        Args:
            goal: the instruction.
            page: the page, one element per line.
            history: the actions done so far in this episode, without thoughts.
            error: why the last completion was refused or its action failed, empty if neither.
            extra: the task's actions of `EXTRA_ACTIONS`.

        Returns:
            The system message, the worked examples as earlier turns, and the user's message, which
            holds the page verbatim: a long page is cut there, and hidden from the blind agent.
        """
        return self._chat(self.turn(goal, page, history, error), page, extra)

    def around(self, content: str, extra: Collection[str] = ()) -> tuple[Message, ...]:
        """Build the chat around a user's message that was recorded.

        Args:
            content: the last message of a chat of `messages`.
            extra: the task's actions of `EXTRA_ACTIONS`.
        """
        return self._chat(content, content.partition("\nPage:\n")[2], extra)

    def turn(self, goal: str, page: str, history: Sequence[str], error: str = "") -> str:
        """Write a message of the user; the arguments are those of `messages`."""
        content = f"Goal: {goal}\nPage:\n{page}"
        if history:
            content += f"\nDone so far: {' '.join(history)}"
        if error:
            content += f"\nError: {error}"
        return content

    def parse(self, text: str, extra: Collection[str] = ()) -> Action:
        """Read a completion.

        Args:
            text: what the model said.
            extra: names of `EXTRA_ACTIONS` that are allowed.

        Raises:
            InvalidAction: it is not a completion of this format; one line says what was expected.
        """
        raise NotImplementedError

    def write(self, action: Action, thought: str = "") -> str:
        """Write a completion that `parse` reads as this action: for agents and demonstrations.

        Args:
            action: the action.
            thought: what is said before it, in formats that say something.

        Raises:
            ValueError: the thought cannot be said in this format.
        """
        return format_action(action)

    def thought(self, text: str) -> str:
        """Return what a completion that `parse` reads says before its action; "" for nothing."""
        return ""

    def grammars(self, extra: Collection[str] = ()) -> Mapping[str, str]:
        """Return the format as grammars by the name of their file; none if it has none.

        Args:
            extra: names of `EXTRA_ACTIONS` that are allowed.
        """
        return {}

    def why_invalid(self, text: str, ids: Container[str], extra: Collection[str] = ()) -> str:
        """Return why a completion has no action on a page with these element ids; "" if it has."""
        try:
            missing = [i for i in self.parse(text, extra).ids if i not in ids]
        except InvalidAction as error:
            return str(error)
        return f"there is no element {missing[0]!r} on the page" if missing else ""

    def _chat(self, content: str, page: str, extra: Collection[str]) -> tuple[Message, ...]:
        roles = [line.split(" ", 1)[0] for line in page.splitlines()]
        has_field, extra = not TEXT_ROLES.isdisjoint(roles), page_actions(extra, roles)
        messages = [
            {"role": "system", "content": "\n".join([self.system, *(usage(n) for n in extra)])}
        ]
        for goal, shown, done, completion in (
            *self.examples,
            *(self.field_examples if has_field else ()),
        ):
            messages.append({"role": "user", "content": self.turn(goal, shown, done)})
            messages.append({"role": "assistant", "content": completion})
        messages.append({"role": "user", "content": content})
        return tuple(messages)


class ActionPrompt(Prompt):
    """One action and nothing else: `click('9')`."""

    examples = EXAMPLES
    field_examples = FIELD_EXAMPLES

    def parse(self, text: str, extra: Collection[str] = ()) -> Action:
        """Read a completion that is exactly one action; see `parse_action`."""
        return parse_action(text, extra)

    def grammars(self, extra: Collection[str] = ()) -> dict[str, str]:
        """Return the grammars of `envs.browser.grammar`."""
        return {"actions.gbnf": action_gbnf(extra), "actions.regex": action_regex(extra)}


ACTION = ActionPrompt()
"""The default."""
