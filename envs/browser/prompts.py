"""The chat around a page: system text, worked examples, goal, history and error."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from envs.base import Message
from envs.browser.actions import usage
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


def page_messages(
    goal: str,
    page: str,
    history: Sequence[str],
    error: str,
    extra: Collection[str] = (),
) -> tuple[Message, ...]:
    """Build the chat that the model continues with one action.

    Args:
        goal: the instruction.
        page: the page, one element per line.
        history: the actions done so far in this episode.
        error: why the last action was refused or failed, empty if it did not.
        extra: the task's actions of `EXTRA_ACTIONS`.

    Returns:
        The system message, the worked examples as earlier turns, and the user's message.
    """
    return _chat(_turn(goal, page, history, error), page, extra)


def chat_around(content: str, extra: Collection[str] = ()) -> tuple[Message, ...]:
    """Build the chat around a user's message that was recorded.

    Args:
        content: the last message of a chat of `page_messages`.
        extra: the task's actions of `EXTRA_ACTIONS`.
    """
    return _chat(content, content.partition("\nPage:\n")[2], extra)


def _chat(content: str, page: str, extra: Collection[str]) -> tuple[Message, ...]:
    has_field = any(line.split(" ", 1)[0] in TEXT_ROLES for line in page.splitlines())
    system = "\n".join([SYSTEM, *(usage(name) for name in extra)])
    messages = [{"role": "system", "content": system}]
    for example_goal, example_page, done, completion in EXAMPLES + FIELD_EXAMPLES * has_field:
        messages.append({"role": "user", "content": _turn(example_goal, example_page, done)})
        messages.append({"role": "assistant", "content": completion})
    messages.append({"role": "user", "content": content})
    return tuple(messages)


def _turn(goal: str, page: str, history: Sequence[str], error: str = "") -> str:
    content = f"Goal: {goal}\nPage:\n{page}"
    if history:
        content += f"\nDone so far: {' '.join(history)}"
    if error:
        content += f"\nError: {error}"
    return content
