"""One browser window in this process as an environment, without a server: to act, and to record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from envs.base import EnvError, TaskError
from envs.browser.actions import EXTRA_ACTIONS, parse_action
from envs.browser.connection import ServerError
from envs.browser.env import BrowserEnv
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.connected import ConnectedChromium
from envs.browser.server.sites import Sites
from envs.browser.server.slot import START_DEADLINE_S
from envs.browser.server.web_session import WebSession
from envs.browser.task_file import TaskFile, check_task
from envs.browser.web_task import WebTask

DEADLINE_S = 60.0


class LiveEnv(BrowserEnv):
    """A session of this process as an environment; see `open_live`.

    Attributes:
        session: the session.
    """

    def __init__(self, session: WebSession, *, deadline_s: float):
        super().__init__("", deadline_s=deadline_s, headers={})
        self.session = session

    async def _connect(self) -> Any:
        return _Client(self.session)

    def _fail(self, reason: str) -> EnvError:
        self._dead = reason
        return EnvError(f"browser: {reason}")


@asynccontextmanager
async def open_live(
    tasks: str | Path | WebTask,
    *,
    visible: bool = False,
    args: Sequence[str] = (),
    connect: str = "",
    deadline_s: float = DEADLINE_S,
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
        deadline_s: seconds that a reset or a step may take.

    Raises:
        TaskError: the file or the task cannot be used.
        ValueError: `connect` is not an address of this machine, or `visible` is set as well.
        FileNotFoundError: there is no Chromium, or no display for a visible one.
        EnvError: the browser does not start, or does not respond.
    """
    if connect and visible:
        raise ValueError("expected connect or visible, got both: the running browser has a window")
    file = _OneTask(tasks) if isinstance(tasks, WebTask) else TaskFile(tasks)
    browser = (
        ConnectedChromium(connect) if connect else PlaywrightChromium(visible=visible, args=args)
    )
    sites = Sites(file)
    try:
        await _start(browser)
        env = LiveEnv(WebSession(browser, file, sites), deadline_s=deadline_s)
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
        try:
            observation = await work
        except (BrowserError, SessionError) as error:
            raise ServerError(str(error)) from error
        outcome = {name: observation[name] for name in ("reward", "done")}
        return {"observation": observation, **outcome}


async def _start(browser: PlaywrightChromium) -> None:
    try:
        async with asyncio.timeout(START_DEADLINE_S):
            await browser.start()
    except TimeoutError as error:
        raise EnvError(f"the browser did not respond within {START_DEADLINE_S:g} s") from error
    except BrowserError as error:
        raise EnvError(str(error)) from error
