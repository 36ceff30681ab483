"""What a person did, as `capture.js` reports it, and the actions that it amounts to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from envs.browser.foreign_text import one_line

HOLD_S = 0.4
"""How long a click waits for a second one, which makes a double click of both."""

MAX_REPORT = 100_000
MAX_DEPTH = 1_000
KINDS = {
    **dict.fromkeys(("click", "input", "select", "key"), (1,)),
    **dict.fromkeys(("leave", "back", "ignored", "command"), (0,)),
    "drag": (2,),
    "scroll": (0, 1),
}
"""The kinds of reports, and how many elements they may name."""


@dataclass(frozen=True)
class Target:
    """An element of the recorded page, which is to be found in another browser's.

    Attributes:
        frame: place among the frames of its parent, for each frame from the top down.
        path: see `describe` in capture.js.
        tag: its tag.
        text: its text or label, shortened.
    """

    frame: tuple[int, ...]
    path: tuple[int | str, ...]
    tag: str
    text: str

    def to_json(self) -> str:
        """Return it as the argument of `find.js`."""
        return json.dumps({"path": self.path, "tag": self.tag, "text": self.text})

    def __str__(self) -> str:
        return f"{self.tag} {one_line(self.text, 40)!r}" if self.text else self.tag


@dataclass(frozen=True)
class Event:
    """One report.

    Attributes:
        kind: one of `KINDS`, or "dialog", "goto", "answer", "closed".
        targets: the elements that it names.
        value: the text of a field, the option, the key, an address, an answer, the name of a
            command, or a reason.
        amounts: pixels of a scroll to the right and down.
        count: number of clicks in a row.
        field: True for a click into a field.
        plain: True for a click on something that does not look as if it reacts to one.
        accepted: how a dialog was answered.
    """

    kind: str
    targets: tuple[Target, ...] = ()
    value: str = ""
    amounts: tuple[int, int] = (0, 0)
    count: int = 1
    field: bool = False
    plain: bool = False
    accepted: bool = False


@dataclass(frozen=True)
class Step:
    """One action, on elements that are still to be found.

    Attributes:
        name: name of an action, or "dialog".
        targets: its elements; of a scroll, what it scrolls: none for the page.
        args: its other arguments.
        plain: see `Event`.
    """

    name: str
    targets: tuple[Target, ...] = ()
    args: tuple[str | int, ...] = ()
    plain: bool = False


@dataclass(frozen=True)
class Ignored:
    """Something that was done and is no action, with the reason."""

    reason: str


def read_report(report: str, frame: tuple[int, ...]) -> Event:
    """Read a report of `capture.js`.

    Args:
        report: JSON. The page could have written it, so every part is checked.
        frame: the frame that it comes from; see `Target`.

    Raises:
        ValueError: it is not such a report.
    """
    try:
        found = json.loads(report if len(report) <= MAX_REPORT else "")
        kind, (dx, dy) = found["kind"], found.get("amounts", (0, 0))
        targets = tuple(_target(target, frame) for target in found.get("targets", ()))
        count, value = found.get("count", 1), _text(found.get("value", ""))
        if len(targets) not in KINDS[kind] or not all(type(n) is int for n in (dx, dy, count)):
            raise ValueError(kind)
        flags = {name: found.get(name) is True for name in ("field", "plain")}
        return Event(kind, targets, value, (dx, dy), count, **flags)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"expected a report, got {report[:80]!r}") from error


class Actions:
    """Makes actions of events: a text that was typed is one `fill`, two clicks a `dblclick`.

    Attributes:
        waits: True if the last click may still become a double click: after `HOLD_S` call `flush`.
    """

    def __init__(self) -> None:
        self._pending: Step | None = None
        self._field = False  # the pending step is a click into a field, or its text

    @property
    def waits(self) -> bool:
        """True if there is an action that only waits for time to pass."""
        return self._pending is not None and not self._field

    @property
    def typing(self) -> bool:
        """True if a field was changed and not left."""
        return self._pending is not None and self._field

    def flush(self) -> Iterator[Step | Ignored]:
        """Yield the action that waits for what comes next, if there is one."""
        pending, self._pending, self._field = self._pending, None, False
        if pending is not None:
            yield pending

    def add(self, event: Event) -> Iterator[Step | Ignored]:
        """Yield the actions that are complete with this event."""
        pending, field = self._pending, self._field
        name = pending.name if pending is not None else ""
        same = pending is not None and pending.targets == event.targets
        if event.kind == "input":
            if not (field and same):  # typing into a field includes the click into it
                yield from self.flush()
            fill = ("fill", (event.value,)) if event.value else ("clear", ())
            self._pending, self._field = Step(fill[0], event.targets, fill[1]), True
        elif event.kind == "click":
            if same and event.count > 1 and name in ("click", "dblclick"):
                self._pending = Step("dblclick", event.targets, (), event.plain)
                if not field:
                    yield from self.flush()
                return
            yield from self.flush()
            self._pending = Step("click", event.targets, (), event.plain)
            self._field = event.field
        else:
            yield from self.flush()
            yield from _single(event)


def _single(event: Event) -> Iterator[Step | Ignored]:
    """Yield the action of an event that is one by itself."""
    if event.kind == "select":
        yield Step("select_option", event.targets, (event.value,))
    elif event.kind == "key":
        yield Step("press", event.targets, (event.value,))
    elif event.kind == "drag":
        yield Step("drag_and_drop", event.targets)
    elif event.kind == "scroll":
        yield Step("scroll", event.targets, event.amounts)
    elif event.kind == "back":
        yield Step("go_back")
    elif event.kind in ("goto", "answer"):
        yield Step(event.kind, (), (event.value,))
    elif event.kind == "dialog":
        yield Step("dialog", (), (int(event.accepted), event.value))
    elif event.kind == "ignored":
        yield Ignored(event.value)


def _target(found: Any, frame: tuple[int, ...]) -> Target:
    path = tuple(found["path"])
    if len(path) > MAX_DEPTH or not all(type(step) is int or step == "shadow" for step in path):
        raise ValueError(path)
    return Target(frame, path, _text(found["tag"]), _text(found["text"]))


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise ValueError(found)
    return found
