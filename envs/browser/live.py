"""One browser window in this process as an environment, without a server: to act, and to record."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from envs.base import EnvError, TaskError
from envs.browser.actions import EXTRA_ACTIONS, Action, InvalidAction, parse_action
from envs.browser.connection import ServerError, describe_failure
from envs.browser.env import BrowserEnv
from envs.browser.prompts import ACTION, Prompt
from envs.browser.sending import may_send
from envs.browser.server.chromium import find_chromium, find_visible_chromium
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.local import check_packages
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.connected import ConnectedChromium
from envs.browser.server.secrets import Secrets
from envs.browser.server.sites import Sites
from envs.browser.server.slot import START_DEADLINE_S
from envs.browser.server.web_session import WebSession
from envs.browser.task_file import TaskFile, check_task
from envs.browser.web_task import WebTask

DEADLINE_S = 60.0

PACKAGES = ("browsergym", "playwright", "websockets")


class LiveEnv(BrowserEnv):
    """A session of this process as an environment; see `open_live`.

    Attributes:
        session: the session.
    """

    def __init__(self, session: WebSession, *, deadline_s: float, prompt: Prompt = ACTION):
        super().__init__("", deadline_s=deadline_s, headers={}, prompt=prompt)
        self.session = session

    def target(self, text: str) -> str:
        """Return the elements that an action names or points at: `button 'Add'`."""
        action = self._parsed(text)
        if action is None:
            return ""
        return self._named(action)

    def may_send(self, text: str) -> bool:
        """Return True if an action may make the page send something; see `may_send`.

        So may one that gives the page a secret. An invalid action does nothing.
        """
        action = self._parsed(text)
        if action is None:
            return False
        role = next((each.role for each in self._elements if each.id in action.ids[:1]), "")
        return may_send(action, role) or self.session.secrets.revealed(action) != action

    def _parsed(self, text: str) -> Action | None:
        try:
            return self.prompt.parse(text, self._extra)
        except InvalidAction:
            return None

    async def _connect(self) -> Any:
        return _Client(self.session)

    def _fail(self, reason: str) -> EnvError:
        self._dead = self.session.secrets.hide(reason)
        return EnvError(f"browser: {self._dead}")


def check_live(
    *, visible: bool = False, connect: str = "", secrets: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Check the arguments of `open_live`, and what it needs on this machine.

    Raises:
        ModuleNotFoundError: a package is not installed.
        ValueError, FileNotFoundError: those of `open_live`.
    """
    check_packages(PACKAGES)
    Secrets(secrets)
    if connect and visible:
        raise ValueError("expected connect or visible, got both: the running browser has a window")
    if connect:
        ConnectedChromium(connect)
    elif visible:
        find_visible_chromium()
    else:
        find_chromium()


@asynccontextmanager
async def open_live(
    tasks: str | Path | WebTask,
    *,
    visible: bool = False,
    args: Sequence[str] = (),
    connect: str = "",
    secrets: Mapping[str, str] = MappingProxyType({}),
    deadline_s: float = DEADLINE_S,
    prompt: Prompt = ACTION,
) -> AsyncIterator[LiveEnv]:
    """Open a browser window for tasks; at the end of the block it is closed, with their sites.

    Pages, element ids, actions, history and prompts are those of a training run.

    Args:
        tasks: a file of tasks, or one task; a task without a name has that of its class.
        visible: True for a window on the screen.
        args: more arguments of a Chromium that is started.
        connect: address of the DevTools of a Chromium that runs already on this machine, such as
            `http://127.0.0.1:9222`. It gets a new tab with the browser's own cookies and storage,
            which is left open at the end.
        secrets: values by their names. The agent writes `<name>` in the text of a `fill`, the page
            gets the value, and no observation, picture or error shows it.
        deadline_s: seconds that a reset or a step may take.
        prompt: the answer format.

    Raises:
        TaskError: the file or the task cannot be used.
        ValueError: `connect` is not an address of this machine, `visible` is set as well, or a
            secret cannot be used.
        FileNotFoundError: there is no Chromium, or no display for a visible one.
        EnvError: the browser does not start, or does not respond.
    """
    check_live(visible=visible, connect=connect, secrets=secrets)
    file = _OneTask(tasks) if isinstance(tasks, WebTask) else TaskFile(tasks)
    browser = (
        ConnectedChromium(connect) if connect else PlaywrightChromium(visible=visible, args=args)
    )
    sites, hidden = Sites(file), Secrets(secrets)
    try:
        await _start(browser)
        session = WebSession(browser, file, sites, hidden)
        env = LiveEnv(session, deadline_s=deadline_s, prompt=prompt)
        try:
            yield env
        finally:
            await env.close()
    finally:
        await browser.close()
        await asyncio.to_thread(sites.stop)


class _OneTask(TaskFile):
    """One task as a file of tasks."""

    def __init__(self, task: WebTask):
        task.name = task.name or type(task).__name__
        try:
            check_task(task)
        except ValueError as error:
            raise TaskError(f"task {task.name!r}: {error}") from error
        self.tasks = {task.name: task}


class _Client:
    """A session behind the interface of OpenEnv's client."""

    def __init__(self, session: WebSession):
        self._session = session

    async def reset(self, *, task_name: str, seed: int, **options: bool) -> dict[str, Any]:
        return await self._respond(self._session.reset(task_name, seed, **options))

    async def step(self, command: str) -> dict[str, Any]:
        return await self._respond(self._session.step(parse_action(command, EXTRA_ACTIONS)))

    async def close(self) -> None:
        with suppress(BrowserError, SessionError, TaskError):  # the browser is gone, or an app
            await self._session.close()

    async def _respond(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        secrets = self._session.secrets
        try:
            observation = await work
        except TaskError as error:
            raise TaskError(secrets.hide(str(error))) from (None if secrets else error)
        except Exception as error:  # of Playwright, whose texts and traces hold what was typed
            known = isinstance(error, BrowserError | SessionError)
            reason = str(error) if known else describe_failure(error)
            raise ServerError(secrets.hide(reason)) from (None if secrets else error)
        outcome = {name: observation[name] for name in ("reward", "done")}
        return {"observation": observation, **outcome}


@contextmanager
def _every_core() -> Iterator[None]:
    """Let processes that start in the block use every core: OpenMP may have bound this thread."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


async def _start(browser: PlaywrightChromium) -> None:
    try:
        with _every_core():
            async with asyncio.timeout(START_DEADLINE_S):
                await browser.start()
    except TimeoutError as error:
        hint = "; is a dialog open in one of its tabs?" if browser.is_shared else ""
        reason = f"the browser did not respond within {START_DEADLINE_S:g} s{hint}"
        raise EnvError(reason) from error
    except BrowserError as error:
        raise EnvError(str(error)) from error
