"""Records demonstrations: a person does a task in one browser, and a second one replays it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from envs.base import EnvError, Task
from envs.browser.foreign_text import one_line
from envs.browser.live import LiveEnv
from envs.browser.record.bar import Bar, State
from envs.browser.record.capture import Capture
from envs.browser.record.events import HOLD_S, Actions, Event, Ignored, Step
from envs.browser.record.replay import Differs, NoAction, Replay, first_difference
from envs.browser.server.errors import BrowserError
from envs.browser.server.playwright.dialog import DialogOpened
from envs.demonstrations import Demonstration

SHOWN_S = 1.0
"""How long the end of an episode stays on the screen."""


class Closed(Exception):
    """The person has closed a window."""


class Recorder:
    """A person's browser, and one that replays each action as soon as it is taken.

    What is kept is what the second one did: its pages and ids are those that a policy reads, and
    these actions alone led to its success, twice.

    Args:
        live: the person's browser.
        replay: the other one, with the same file of tasks.
        say: prints a line.

    Attributes:
        bar: the window with the goal; open it first.
    """

    def __init__(self, live: LiveEnv, replay: LiveEnv, say: Callable[[str], None]):
        self._live = live
        self._replay = Replay(replay)
        self._say = say
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._actions = Actions()
        self._capture = Capture(self._events.put_nowait)
        self.bar = Bar(live.session.browser, self._events.put_nowait)
        self._state = State()
        self._task = Task("", 0)
        self._steps: list[int] = []  # number of actions before each step
        self._done = 0  # number of actions of complete steps
        self._stray = False  # something was done that is no action
        self._broken = ""  # why nothing more can be recorded, until it is undone
        self._difference = ""  # where the two pages first differed
        live.session.on_window = self._capture.follow

    async def record(self, name: str, seed: int, *, kept: int, wanted: int) -> Demonstration | None:
        """Let the person do a task until it is solved, from the start each time.

        Args:
            name: the task.
            seed: the seed of its start.
            kept: number of its demonstrations that were kept already.
            wanted: number of them that are asked for.

        Returns:
            The demonstration; None if the person has skipped it.

        Raises:
            Closed: a window was closed.
            TaskError, EnvError: as `Env.reset` raises them.
        """
        task = self._task = Task(name, seed)
        self._state = State(f"{task.name} · seed {task.seed}", kept=kept, wanted=wanted)
        try:
            await self._start([])
            self._say(f"\n{task.name}, seed {task.seed}: {one_line(self._state.goal)}")
            while (solved := await self._episode()) is not None:
                number = len(self._replay.taken)
                failure = await self._failure() if solved else f"not done after {_actions(number)}"
                if not failure:
                    break
                await self._tell(f"not kept: {failure}; once more from the start")
                await asyncio.sleep(SHOWN_S)
                await self._start([])
                self._say("       ready")
        except EnvError as error:
            if self._live.session.browser.alive:
                raise
            raise Closed from error
        finally:
            self._capture.on = False
        if solved is None:
            return None
        taken = self._replay.taken
        self._state.kept += 1
        await self._tell(f"kept: {_actions(len(taken))}, replayed with success", "good")
        await asyncio.sleep(SHOWN_S)
        return Demonstration(
            task,
            self._state.goal,
            tuple(each.text for each in taken),
            tuple(each.page for each in taken),
            "record",
        )

    async def _start(self, actions: Sequence[str]) -> None:
        """Bring both browsers to where the episode is after these actions."""
        self._capture.on, self._state.ready = False, False
        live, _ = await asyncio.gather(self._live.reset(self._task), self._replay.reset(self._task))
        for text in actions:
            if (await self._live.step(text)).observation.error:
                raise Differs(f"{text} failed when it was done again")
            await self._replay.do(text)
        self._done = len(actions)
        self._steps = [number for number in self._steps if number < self._done]
        self._actions, self._stray, self._broken, self._difference = Actions(), False, "", ""
        while not self._events.empty():
            self._events.get_nowait()
        self._state.goal, self._state.ready = live.goal, True
        self._state.answers = self._live.refusals()("answer('')") is None
        self._state.actions = self._shown()
        await self.bar.show(self._state)
        await self.bar.place_above(await self._capture.begin())

    async def _episode(self) -> bool | None:
        """Record until the episode ends: True if it is solved, None if it was skipped."""
        while True:
            try:
                wait_s = HOLD_S if self._actions.waits else None
                event = await asyncio.wait_for(self._events.get(), wait_s)
            except TimeoutError:
                steps = list(self._actions.flush())
            else:
                if event.kind == "closed":
                    raise Closed
                if event.kind == "command":
                    if event.value == "skip":
                        return None
                    await self._undo()
                    continue
                steps = list(self._actions.add(event))
            for step in steps:
                solved = await self._take(step)
                if solved is not None:
                    return solved
            await self._compare()

    async def _failure(self) -> str:
        """Play the actions again from the start, without a person's pauses, as a policy does.

        Returns:
            Why this is no success; empty if it is one.
        """
        self._capture.on = False
        shown = self._replay.taken
        await self._replay.reset(self._task)
        differs = ""
        for number, each in enumerate(shown, 1):
            page = self._replay.observation.page
            if not differs and page != each.page:
                here, there = first_difference(each.page, page)
                differs = f"before action {number} the page has {there} instead of {here}"
            try:
                await self._replay.do(each.text)
            except (NoAction, Differs) as error:
                return f"played again, action {number} fails, {differs or error}"
        if not self._replay.taken[-1].result.success:
            return f"played again, it is no success, {differs or 'with the same pages'}"
        return ""

    async def _take(self, step: Step | Ignored) -> bool | None:
        """Execute a step in the second browser; return how the episode ended, if it did."""
        taken = self._replay.taken
        before = len(taken)
        try:
            if self._broken:
                raise NoAction(self._broken)
            if isinstance(step, Ignored):
                raise NoAction(step.reason)
            await self._replay.take(step)
        except NoAction as reason:
            self._stray = True
            await self._tell(f"not recorded: {reason}")
            return None
        except Differs as reason:
            self._broken = f"action {len(taken) + 1} cannot be replayed, {reason}{self._difference}"
            await self._tell(f"{self._broken}; undo it with F8")
            return None
        self._steps.append(before)
        self._stray, self._done = False, len(taken)
        self._state.actions = self._shown()
        for number, each in enumerate(taken[before:], before + 1):
            self._say(f"{number:5}  {one_line(each.text)}   {one_line(each.target)}")
        alerts = re.findall(r"^alert .*", self._replay.observation.page, re.MULTILINE)
        await self._tell(" ".join(alerts), "")
        result = taken[-1].result
        return result.success if result.done else None

    async def _undo(self) -> None:
        """Take the last step back, or what was done since and is none."""
        taken = [each.text for each in self._replay.taken[: self._done]]
        if not (self._stray or self._broken or self._actions.typing) and self._steps:
            del taken[self._steps.pop() :]
        try:
            await self._start(taken)
        except (NoAction, Differs, EnvError) as error:
            if not self._live.session.browser.alive:
                raise Closed from error
            self._steps.clear()
            await self._start([])
        await self._tell(f"undone: {_actions(len(self._replay.taken))} so far", "")

    async def _compare(self) -> None:
        """Note where the person's page differs from the other one, for the case of a failure."""
        window = self._live.session.window
        busy = self._actions.waits or self._actions.typing or not self._events.empty()
        if self._difference or busy or window is None:
            return
        try:
            with suppress(DialogOpened):
                await window.settle()
            view = await window.look()
        except BrowserError:
            return
        here, there = first_difference(view.page(), self._replay.observation.page)
        if self._events.empty() and here != there:
            after = f"after action {len(self._replay.taken)}" if self._steps else "from the start"
            self._difference = f"; {after} your page has {here}, and the other one {there}"

    def _shown(self) -> tuple[tuple[str, str], ...]:
        return tuple((each.text, one_line(each.target, 60)) for each in self._replay.taken)

    async def _tell(self, note: str, tone: str = "bad") -> None:
        """Print a note and show it in the bar; none removes the last one."""
        if note:
            self._say(f"       {one_line(note, 400)}")
        self._state.note, self._state.tone = note, tone if note else ""
        await self.bar.show(self._state)


def _actions(count: int) -> str:
    return f"{count} action{'s' * (count != 1)}"
