"""What the model reads: a page as lines, and the chat around it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from envs.base import Message

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
"""(goal, page, done so far, answer) of an earlier turn of the chat."""

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
"""On other pages, the same for every task."""

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
"""Before pages with a text field, too; elsewhere they lead a small model to fill buttons."""

TEXT_ROLES = {"textbox", "searchbox", "spinbutton"}
CONTROLS = TEXT_ROLES | {
    *("button", "checkbox", "combobox", "link", "listbox", "menuitem", "option", "radio"),
    *("Date", "DateTime", "InputTime", "slider", "switch", "tab", "treeitem"),
}

_FLAGS = {"checked", "selected", "expanded", "disabled", "pressed"}
_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LINE = re.compile(rf"(\t*)(?:\[(\w+)\] )?(\S+)(?: ({_QUOTED}))?(.*)")
_ATTRIBUTE = re.compile(rf"(\w+)=({_QUOTED}|[^,]+)")


@dataclass(frozen=True)
class Element:
    """One line of a page: `role 'name' [id], state`; the id is empty for a plain text.

    The id stands behind the name because a language model copies what followed its match.
    """

    id: str
    role: str
    name: str
    state: str = ""

    def says(self, text: str) -> bool:
        """Whether its line shows this text already, as its name or as what it holds."""
        value = self.state.partition("value=")[2]
        return self.role in CONTROLS and text.strip() in (self.name, value.strip("' "))

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"{self.role}{name}{f' [{self.id}]' if self.id else ''}{self.state}"


def simplify_axtree(axtree_txt: str) -> list[Element]:
    """Read BrowserGym's accessibility tree and drop what only lays the page out.

    Controls stay, and elements with a name. A nameless element around texts alone becomes
    one `text` with its id; any other nameless element goes, its children stay. A text that
    says again what the control before it says goes, and so do states that are false.

    Args:
        axtree_txt: the tree as BrowserGym flattens it, one node a line, indented by tabs.

    Returns:
        The elements in the order of the page.
    """
    nodes = [_parse(line) for line in axtree_txt.splitlines()]
    nodes = [node for node in nodes if node[1].role != "StaticText" or node[1].name]
    elements: list[Element] = []
    taken: set[int] = set()
    ids: set[str] = set()
    for i, (depth, node) in enumerate(nodes):
        # The inner parts of a date field, say, inherit the id of the field.
        repeated = node.id in ids
        if i in taken or repeated or node.role == "RootWebArea":
            continue
        if node.id:
            ids.add(node.id)
        if node.role in CONTROLS or (node.name and node.role != "StaticText"):
            elements.append(node)
            continue
        children = [i] if node.role == "StaticText" else _texts(nodes, i, depth)
        taken.update(children)
        name = " ".join(nodes[child][1].name for child in children)
        if name and (node.id or not (elements and elements[-1].says(name))):
            elements.append(Element(node.id, "text", name))
    return elements


def page_messages(
    goal: str,
    page: str,
    history: Sequence[str],
    error: str,
) -> tuple[Message, ...]:
    """Build the chat that the model continues with one action.

    Args:
        goal: the instruction.
        page: the page, one element a line.
        history: the actions done so far in this episode.
        error: why the last one was refused or failed, empty if it did not.

    Returns:
        System message, the worked examples as earlier turns, and the user's message.
    """
    has_field = any(line.split(" ", 1)[0] in TEXT_ROLES for line in page.splitlines())
    messages = [{"role": "system", "content": SYSTEM}]
    for example_goal, example_page, done, answer in EXAMPLES + FIELD_EXAMPLES * has_field:
        messages.append({"role": "user", "content": _turn(example_goal, example_page, done)})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": _turn(goal, page, history, error)})
    return tuple(messages)


def _turn(goal: str, page: str, history: Sequence[str], error: str = "") -> str:
    content = f"Goal: {goal}\nPage:\n{page}"
    if history:
        content += f"\nDone so far: {' '.join(history)}"
    if error:
        content += f"\nError: {error}"
    return content


def _parse(line: str) -> tuple[int, Element]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"expected a line of an accessibility tree, got {line!r}")
    tabs, bid, role, quoted, rest = match.groups()
    name = str(ast.literal_eval(quoted)) if quoted else ""
    state = ""
    for key, text in _ATTRIBUTE.findall(rest):
        if key == "value":
            state += f", value={text}"
        elif key in _FLAGS and text.strip("'").lower() != "false":
            state += f", {key}"
    return len(tabs), Element(bid or "", role, name, state)


def _texts(nodes: list[tuple[int, Element]], i: int, depth: int) -> list[int]:
    """Return the descendants of node i if they are texts alone, otherwise none."""
    children = []
    for j in range(i + 1, len(nodes)):
        child_depth, child = nodes[j]
        if child_depth <= depth:
            break
        if child.role != "StaticText":
            return []
        children.append(j)
    return children
