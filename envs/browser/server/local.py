"""A browser server as a child process."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from envs.base import EnvError
from envs.browser.server.processes import kill_marked, last_lines, marked

READY = "browser server ready at "

CLIENT = ("openenv",)
SERVER = (*CLIENT, "uvicorn", "browsergym", "miniwob")


def how_to_install(version: tuple[int, ...]) -> str:
    """Say how to install the packages of `SERVER` on this version of Python, in one line."""
    extra = "run `make setup` in a checkout, or install the extra `browser`"
    if version < (3, 13):
        return extra
    return (
        f"{extra} and, as pip leaves them out on Python 3.13 and newer, `pip install --no-deps "
        "browsergym-core==0.14.3 browsergym-miniwob==0.14.3`"
    )


INSTALL = how_to_install(sys.version_info[:2])


def check_packages(names: Sequence[str]) -> None:
    """Check that packages are installed, without importing them.

    Args:
        names: `CLIENT`, or `SERVER` for a server on this machine.

    Raises:
        ModuleNotFoundError: some are missing; the message says how to install them.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"browser tasks need {', '.join(missing)}: {INSTALL}")


class LocalServer:
    """`python -m envs.browser.server` on a free port of 127.0.0.1, started by `ensure`.

    Args:
        workers: number of Chromiums.
        max_sessions: maximum number of concurrent sessions.
        start_deadline_s: seconds that the server may take to become ready.
        task_file: file of the user's own tasks; empty for none.

    Attributes:
        url: address of the server, empty before its first start.
    """

    def __init__(
        self,
        workers: int = 2,
        max_sessions: int = 32,
        start_deadline_s: float = 90.0,
        *,
        task_file: str = "",
    ):
        self.workers = workers
        self.task_file = task_file
        self.max_sessions = max_sessions
        self.start_deadline_s = start_deadline_s
        self.url = ""
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._start_error: EnvError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._mark = f"GRPO_BROWSER_SERVER={uuid.uuid4().hex}"
        self._session: int | None = None
        self._folder: Path | None = None

    @property
    def alive(self) -> bool:
        """True while the process of the server runs."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[int]:
        """Return the ids of all its processes, browsers included (Linux only; else none)."""
        return marked(self._mark, self._session)

    @property
    def pid(self) -> int:
        """Process id of the server.

        Raises:
            EnvError: it was not started.
        """
        if self._process is None:
            raise EnvError("the browser server was not started: call ensure() first")
        return self._process.pid

    async def ensure(self) -> str:
        """Start the server if it does not run; concurrent calls start it once.

        Returns:
            Its address, which changes with each start.

        Raises:
            EnvError: it did not become ready; the message is one line, with the end of its output.
        """
        return await asyncio.to_thread(self.start, self._failed_starts)

    def start(self, failed_starts: int | None = None) -> str:
        """Do the same as `ensure`, but block.

        Args:
            failed_starts: number of failed starts when the server was asked for; if one has failed
                since, while this call waited, its error is this call's as well.
        """
        with self._lock:
            if not (self.alive and self._responds()):
                if self._start_error and failed_starts not in (None, self._failed_starts):
                    raise EnvError(str(self._start_error))
                self._stop()
                try:
                    self._start()
                except EnvError as error:
                    self._failed_starts, self._start_error = self._failed_starts + 1, error
                    raise
            return self.url

    def close(self) -> None:
        """Stop the server and every process that it started; `ensure` starts it again."""
        with self._lock:
            self._stop()

    async def __aenter__(self) -> LocalServer:
        await self.ensure()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _responds(self) -> bool:
        """Return True if the server responds; a killed one keeps process and port for a moment."""
        address = urlsplit(self.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            connection.request("GET", "/health")
            connection.getresponse()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="grpo-server-"))
        name, value = self._mark.split("=")
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [
            # -P: a folder `envs` in the working directory is not this package.
            *(sys.executable, "-P", "-m", "envs.browser.server", "--until-stdin-closes"),
            *("--workers", str(self.workers), "--max-sessions", str(self.max_sessions)),
            *([os.path.abspath(self.task_file)] if self.task_file else []),
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the server
                env=os.environ | {name: value, "TMPDIR": str(self._folder), "PYTHONPATH": path},
            )
        self._session = self._process.pid
        end = time.monotonic() + self.start_deadline_s
        while time.monotonic() < end and self.alive:
            for line in self._log().splitlines():
                if line.startswith(READY):
                    self.url = line.removeprefix(READY)
                    return
            time.sleep(0.05)
        late = f"was not ready within {self.start_deadline_s:g} s"
        state = late if self.alive else "exited at its start"
        output = last_lines(self._log())
        self._stop()
        raise EnvError(f"the browser server {state}: {output}")

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace") if self._folder else ""

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()
            kill_marked(self._mark, self._session)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
