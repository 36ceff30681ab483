"""The same episode in a second browser, headless and by actions alone, as a policy plays it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from envs.base import Observation, StepResult, Task
from envs.browser.actions import Action, format_action
from envs.browser.element_ids import page_id
from envs.browser.foreign_text import one_line
from envs.browser.live import LiveEnv
from envs.browser.page_text import QUOTED
from envs.browser.record.events import Step, Target
from envs.browser.server.errors import BrowserError

FIND = Path(__file__).with_name("find.js").read_text().strip().rstrip(";")

TEXT = {"text", "heading", "paragraph", "LabelText", "StaticText", "strong", "emphasis", "time"}
"""Roles of what is only read, unless the page shows that it reacts to clicks."""

STRUCTURE = {
    *("alertdialog", "article", "banner", "complementary", "contentinfo", "dialog", "document"),
    *("feed", "figure", "form", "grid", "group", "Iframe", "list", "main", "menu", "menubar"),
    *("navigation", "radiogroup", "region", "rowgroup", "search", "section", "status", "table"),
    *("tablist", "toolbar", "tree", "treegrid", "generic", "Section"),
}
"""Roles of what only holds others: a click on it would be one on whatever is in its middle."""

_LINE = re.compile(rf"(\S+)(?: ({QUOTED}))?(?: \[([A-Za-z0-9]{{1,12}})\])?(.*)")


class Differs(Exception):
    """The page in the second browser does not allow what was done in the first."""


class NoAction(Exception):
    """What was done is no action; the message says why. Nothing was executed."""


@dataclass(frozen=True)
class Taken:
    """One action that was executed.

    Attributes:
        text: the action, with the ids of the page.
        page: the page before it.
        target: its elements as the page shows them, such as `button 'Add'`.
        result: what `step` returned.
    """

    text: str
    page: str
    target: str
    result: StepResult


class Replay:
    """Plays the steps of an episode as actions, by `step` on an environment of its own.

    The element of a step is looked up in this environment's page. So actions and pages are those
    of a policy, however the page came about that a person had before them.

    Args:
        env: the environment.

    Attributes:
        taken: the actions of the episode.
        observation: the page.
    """

    def __init__(self, env: LiveEnv):
        self.env = env
        self.taken: list[Taken] = []
        self.observation = Observation(messages=())
        self._task = Task("", 0)

    async def reset(self, task: Task) -> None:
        """Start an episode; errors are those of `Env.reset`."""
        self._task, self.taken = task, []
        self.observation = await self.env.reset(task)

    async def take(self, step: Step) -> None:
        """Execute a step.

        It may take more than one action: `noop()` where its element was not there yet, `hover`
        where it appears under the pointer or scrolls, or the text of a dialog.

        Raises:
            NoAction: the step is none.
            Differs: an action is not possible, or its element is not there; reset before going on.
            EnvError: the infrastructure failed.
        """
        if step.name == "dialog":
            accepted, text = step.args
            if accepted and text:
                await self._do("fill", self._own("1"), text)
            await self._do("click", self._own("2" if accepted else "3"))
            return
        also = {"drag_and_drop": TEXT | STRUCTURE, "scroll": TEXT | STRUCTURE, "press": STRUCTURE}
        roles = also.get(step.name, set() if step.plain else TEXT)
        scrolls = step.name == "scroll"
        ids = [await self._find(target, roles, within=scrolls) for target in step.targets]
        if scrolls and ids:  # the wheel scrolls what is under the pointer
            await self._do("hover", ids.pop())
        await self._do(step.name, *ids, *step.args)

    async def _do(self, name: str, *args: Any) -> None:
        await self.do(format_action(Action(name, args)))

    async def do(self, text: str) -> None:
        """Execute an action, given with the ids of this page; see `take`."""
        if self.taken and self.taken[-1].result.done:
            raise Differs(f"{text}: the episode is over")
        refused = self.env.refusals()(text)
        if refused is not None:
            raise NoAction(refused.observation.error)
        target, page = self.env.target(text), self.observation.page
        result = await self.env.step(text)
        self.observation = result.observation
        if result.observation.error:
            raise Differs(f"{text}: {result.observation.error}")
        self.taken.append(Taken(text, page, target, result))

    async def _find(self, target: Target, also: set[str], *, within: bool) -> str:
        """Return the id of the nearest element that is meant.

        Args:
            target: the element.
            also: roles of `TEXT` and `STRUCTURE` that it may have.
            within: True if it may be in the element.
        """
        ids, state = await self._look_up(target, within)
        if state in ("gone", "new"):
            await self._do("noop")  # which reads the page again
            ids, state = await self._look_up(target, within)
        elif state == "hidden" and ids:
            await self._do("hover", ids[0])
            ids, state = await self._look_up(target, within)
        if state != "shown":
            raise Differs(f"{target} is {state}")
        roles = {line[3]: line[0] for line in self._lines()}
        found = [i for i in ids if roles[i] not in (TEXT | STRUCTURE) - also]
        if not found:
            raise NoAction(f"the model sees no control there: {target}")
        return found[0]

    async def _look_up(self, target: Target, within: bool) -> tuple[list[str], str]:
        """Return the ids on the page of what a click on it may mean, and its state."""
        window = self.env.session.window
        assert window is not None
        tab = await window.tabs.front()
        frame = tab.page.main_frame
        try:
            for place in target.frame:
                frame = frame.child_frames[place]
            arguments = f"{target.to_json()}, {json.dumps(tab.attribute)}, {json.dumps(within)}"
            found = await tab.run_in(frame, f"({FIND})({arguments})")
        except (BrowserError, IndexError):
            found = None
        if found is None:
            return [], "gone"
        on_page = {line[3] for line in self._lines()} - {""}
        ids = [page_id(self._task, bid) for bid in found["ids"]]
        return [i for i in ids if i in on_page], found["state"]

    def _own(self, bid: str) -> str:
        return page_id(self._task, bid)

    def _lines(self) -> list[tuple[str, str, str, str]]:
        """Return role, name, state and id of every line of the page."""
        return _parsed(self.observation.page)


def first_difference(page: str, other: str) -> tuple[str, str]:
    """Return the first lines, without ids, that two pages do not share; empty for equal ones."""
    texts = [[_line(line) + line[2] for line in _parsed(each)] for each in (page, other)]
    pairs = zip_longest(*texts, fillvalue="nothing more")
    here, there = next((pair for pair in pairs if pair[0] != pair[1]), ("", ""))
    return one_line(here, 60), one_line(there, 60)


def _parsed(page: str) -> list[tuple[str, str, str, str]]:
    matches = filter(None, map(_LINE.match, page.splitlines()))
    return [(m[1], m[2] or "", m[4], m[3] or "") for m in matches]


def _line(line: tuple[str, str, str, str]) -> str:
    return one_line(f"{line[0]} {line[1]}".strip(), 60)
