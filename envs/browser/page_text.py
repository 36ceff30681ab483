"""The page as lines that the model reads, from BrowserGym's accessibility tree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from envs.browser.foreign_text import unquote
from envs.browser.limits import MAX_LINE, MAX_LINES, MAX_PAGE

TEXT_ROLES = {"textbox", "searchbox", "spinbutton"}
"""Roles of the elements that take text."""

CONTROLS = TEXT_ROLES | {
    *("button", "checkbox", "combobox", "link", "listbox", "menuitem", "option", "radio"),
    *("Date", "DateTime", "InputTime", "slider", "switch", "tab", "treeitem"),
}

"""Roles of the elements that stay on the page even without a name."""

_FLAGS = {"checked", "selected", "expanded", "disabled", "pressed"}

# These take time linear in a line's length: `*+` and `++` never give back what they took, and the
# search for an attribute starts at the beginning of a word only.
QUOTED = r"""'[^'\\]*+(?:\\.[^'\\]*+)*+'|"[^"\\]*+(?:\\.[^"\\]*+)*+\""""
_LINE = re.compile(rf"(\t*+)(?:\[(\w++)\] )?(\S++)(?: ({QUOTED}))?(.*)")
_ATTRIBUTE = re.compile(rf"\b(\w++)=({QUOTED}|[^,]++)")


@dataclass(frozen=True)
class Element:
    """One line of a page: `role 'name' [id], state`; the id of a plain text is empty.

    The id comes after the name because a language model copies what follows a match. An element
    without a name may have a guess instead, which the server made from what the page says of it
    elsewhere: `role (guess) [id]`.
    """

    id: str
    role: str
    name: str
    state: str = ""
    guess: str = ""

    def shows(self, text: str) -> bool:
        """Return True if this control already shows the text, as its name or as its value."""
        value = self.state.partition("value=")[2]
        quoted = re.match(QUOTED, value)
        value = unquote(quoted[0]) if quoted else value.partition(",")[0]
        return self.role in CONTROLS and text.strip() in (self.name, value.strip())

    def __str__(self) -> str:
        name = f" {self.name!r}" if self.name else f" ({self.guess})" if self.guess else ""
        return f"{self.role}{name}{f' [{self.id}]' if self.id else ''}{self.state}"


def simplify_axtree(
    axtree_txt: str, names: Mapping[str, str] = MappingProxyType({})
) -> list[Element]:
    """Parse BrowserGym's accessibility tree and drop what only serves the layout.

    Controls and elements with a name stay. A nameless element that contains only texts becomes
    one `text` with its id; any other nameless element stays if the server has a name for it,
    otherwise it is dropped and its children stay. A text that repeats the control before it is
    dropped, and so are states that are false.

    Args:
        axtree_txt: the tree as BrowserGym flattens it, one node per line, indented by tabs.
        names: names of elements that have none, by their ids.

    Returns:
        The elements in page order.

    Raises:
        ValueError: a line is not a node of such a tree, or the tree is over a limit.
    """
    if len(axtree_txt) > MAX_PAGE:
        raise ValueError(f"a page may have {MAX_PAGE} characters, got {len(axtree_txt)}")
    lines = axtree_txt.splitlines()
    if len(lines) > MAX_LINES:
        raise ValueError(f"a page may have {MAX_LINES} lines, got {len(lines)}")
    nodes = [_parse(line) for line in lines]
    nodes = [node for node in nodes if node[1].role != "StaticText" or node[1].name]
    elements: list[Element] = []
    taken: set[int] = set()
    ids: set[str] = set()
    for i, (depth, node) in enumerate(nodes):
        # The parts of a date field, for example, inherit the id of the field.
        repeated = node.id in ids
        if i in taken or repeated or node.role == "RootWebArea":
            continue
        if node.id:
            ids.add(node.id)
        if not node.name and (guess := names.get(node.id)):
            role = "element" if node.role == "generic" else node.role
            elements.append(replace(node, role=role, guess=guess))
            continue
        if node.role in CONTROLS or (node.name and node.role != "StaticText"):
            elements.append(node)
            continue
        children = [i] if node.role == "StaticText" else _texts(nodes, i, depth)
        taken.update(children)
        name = " ".join(nodes[child][1].name for child in children)
        if name and (node.id or not (elements and elements[-1].shows(name))):
            elements.append(Element(node.id, "text", name))
    return elements


def format_page(elements: Iterable[Element], left_out: Mapping[str, int]) -> str:
    """Return the page as the model reads it, one element per line.

    Args:
        elements: the elements.
        left_out: number of lines that are not shown, "above" and "below" the window, "clipped": in
            lists that scroll, and "drawn": drawings.
    """
    lines = [str(element) for element in elements]
    if count := left_out.get("above"):
        lines.insert(0, f"({count} more lines above the window)")
    if count := left_out.get("clipped"):
        lines.append(f"({count} more lines in lists: hover and scroll)")
    if count := left_out.get("below"):
        lines.append(f"({count} more lines below the window: scroll(0, 400))")
    if count := left_out.get("drawn"):
        lines.append(f"({count} more drawings)")
    return "\n".join(lines)


def _parse(line: str) -> tuple[int, Element]:
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of a page may have {MAX_LINE} characters, got {len(line)}")
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"expected a line of an accessibility tree, got {line[:80]!r}")
    tabs, bid, role, quoted, rest = match.groups()
    name = unquote(quoted) if quoted else ""
    state = ""
    for key, text in _ATTRIBUTE.findall(rest):
        if key == "value":
            state += f", value={text}"
        elif key in _FLAGS and text.strip("'").lower() != "false":
            state += f", {key}"
    return len(tabs), Element(bid or "", role, name, state)


def _texts(nodes: list[tuple[int, Element]], i: int, depth: int) -> list[int]:
    """Return the descendants of node i if all of them are texts, otherwise none."""
    children = []
    for j in range(i + 1, len(nodes)):
        child_depth, child = nodes[j]
        if child_depth <= depth:
            break
        if child.role != "StaticText":
            return []
        children.append(j)
    return children
