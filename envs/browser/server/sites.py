"""The sites of users' tasks: addresses that exist, folders of HTML, and apps that are started."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from envs.browser.server.errors import SessionError
from envs.browser.server.processes import end_with_parent, kill_marked, last_lines
from envs.browser.task_file import TaskFile
from envs.browser.web_task import Command, Folder, WebTask

MARK = "GRPO_SITE"
POLL_S = 0.02
RESPONSE_S = 5.0
ATTEMPTS = 3  # at starting an app, whose port another program may take first


class AppExited(SessionError):
    """An app ended before it was ready: its port was taken, or it cannot run."""


class RunningSite:
    """A site that responds.

    Attributes:
        url: its address, without a slash at the end.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    @property
    def alive(self) -> bool:
        """False if the site is an app that was started here and has ended."""
        return True

    def responds(self) -> bool:
        """Return True if the site responds, with a status below 500."""
        return True

    def stop(self) -> None:
        """Stop what was started for the site."""


class App(RunningSite):
    """An app on a free port of 127.0.0.1, started when it is created; blocks until it is ready.

    Args:
        command: how to start it.
        folder: working directory of the app.
        name: what error messages call it.

    Raises:
        SessionError: it did not become ready; the message holds its last line of output.
    """

    def __init__(self, command: Command, folder: Path, name: str):
        self.command = command
        self.name = name
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._data = Path(tempfile.mkdtemp(prefix="grpo-site-"))
        self._log = self._data / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        super().__init__(f"http://127.0.0.1:{self._port}")
        try:
            self._process = self._start(folder)
            self._wait()
        except BaseException:
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        """True while the app's process runs."""
        return self._process.poll() is None

    def responds(self) -> bool:
        """Return True if the app responds, with a status below 500."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=RESPONSE_S)
        try:
            connection.request("GET", self.command.ready)
            return connection.getresponse().status < 500
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def last_output(self) -> str:
        """Return the last line that the app wrote."""
        return (
            last_lines(self._log.read_text(errors="replace")) if self._log.exists() else "nothing"
        )

    def stop(self) -> None:
        """Kill the app with everything that it started, and remove its data."""
        kill_marked(self._mark)
        if hasattr(self, "_process"):
            self._process.kill()  # for systems without /proc
            self._process.wait()
        shutil.rmtree(self._data, ignore_errors=True)

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        data = self._data / "data"
        data.mkdir()

        def fill(text: str) -> str:
            return text.replace("{port}", str(self._port)).replace("{data}", str(data))

        args = [fill(text) for text in self.command.args]
        if args[0] in ("python", "python3"):
            args[0] = sys.executable
        own = {name: fill(value) for name, value in self.command.env.items()}
        name, _, value = self._mark.partition("=")
        try:
            with self._log.open("wb") as log:
                return subprocess.Popen(
                    args,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=end_with_parent,
                    env=os.environ | own | {name: value},
                )
        except OSError as error:
            raise SessionError(f"cannot start {self.name}: {args[0]}: {error.strerror}") from error

    def _wait(self) -> None:
        end = time.monotonic() + self.command.start_deadline_s
        while self.alive and time.monotonic() < end:
            if self.responds():
                return
            time.sleep(POLL_S)
        if not self.alive:
            raise AppExited(f"{self.name} exited at its start: {self.last_output()}")
        raise SessionError(
            f"{self.name} was not ready at {self.command.ready} within "
            f"{self.command.start_deadline_s:g} s; its last output: {self.last_output()}"
        )


class Sites:
    """The sites of a file of tasks; one that all sessions share is started when it is asked for.

    Args:
        file: the tasks.
    """

    def __init__(self, file: TaskFile):
        self._file = file
        self._shared: dict[object, RunningSite] = {}
        self._lock = asyncio.Lock()

    async def start_shared(self) -> None:
        """Start the sites that all sessions share, so that no session waits for them.

        Raises:
            SessionError: an app does not start.
        """
        for task in self._file.tasks.values():
            if not per_session(task):
                await self.shared(task)

    async def shared(self, task: WebTask) -> RunningSite:
        """Return the running site of a task whose site all sessions share.

        Raises:
            SessionError: its app does not start.
        """
        key = (repr(task.site), self._file.folder_of(task))
        async with self._lock:
            site = self._shared.get(key)
            if site is None or not site.alive:
                if site is not None:
                    await asyncio.to_thread(site.stop)
                site = self._shared[key] = await self.start(task)
            return site

    async def start(self, task: WebTask) -> RunningSite:
        """Start the site of a task.

        Raises:
            SessionError: its app does not start.
        """
        if isinstance(task.site, str):
            return RunningSite(task.site)
        folder = self._file.folder_of(task)
        command = task.site
        if isinstance(command, Folder):
            command = Command(
                (
                    *("python", "-m", "http.server", "{port}", "--bind", "127.0.0.1"),
                    *("--protocol", "HTTP/1.1", "--directory", str(folder / command.path)),
                )
            )
        starting = asyncio.ensure_future(
            asyncio.to_thread(_start_app, command, folder, f"the app of {task.name}")
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_stop_late)
            raise

    def stop(self) -> None:
        """Stop the sites that were started."""
        while self._shared:
            self._shared.popitem()[1].stop()


def per_session(task: WebTask) -> bool:
    """Return True if each session has a site of its own."""
    return isinstance(task.site, Command) and task.site.per == "session"


def _start_app(command: Command, folder: Path, name: str) -> App:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return App(command, folder, name)
        except AppExited:
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def _stop_late(starting: asyncio.Future[App]) -> None:
    """Stop an app that was ready when nobody waited for it any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().stop()
