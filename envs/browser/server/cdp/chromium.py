"""A Chromium process, controlled with the Chrome DevTools Protocol over two pipes.

Messages are JSON, each ended by a zero byte; several commands may be in flight. No port is opened,
and a Chromium whose pipes close exits.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envs.browser.server.errors import BrowserError, BrowserGone
from envs.browser.server.processes import end_with_parent, kill_marked, last_lines

Handler = Callable[[str, dict[str, Any]], None]
"""Called with each event of a target: (method, parameters)."""

MAX_MESSAGE = 256 * 2**20  # bytes; a screenshot of a large page has a few million
MARK = "GRPO_BROWSER"
_PIPES = (3, 4)  # file descriptors where Chromium reads commands and writes responses


class Chromium:
    """One Chromium process.

    Args:
        command: the executable and its arguments.

    Attributes:
        alive: True from `start` until the process ends.
    """

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self.alive = False
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._handlers: dict[str, Handler] = {}
        self._mark = uuid.uuid4().hex

    async def start(self) -> None:
        """Start the process and wait until it responds.

        Raises:
            BrowserGone: it cannot be started, or exited; the message contains its last output.
        """
        loop = asyncio.get_running_loop()
        self._folder = tempfile.mkdtemp(prefix="grpo-chromium-")
        # Moved above 3 and 4, so that neither dup2 below overwrites the other pipe.
        ends = [end for pair in (os.pipe(), os.pipe()) for end in pair]
        chromium_reads, write, read, chromium_writes = [_moved_up(end) for end in ends]

        def connect_pipes() -> None:
            os.dup2(chromium_reads, _PIPES[0])
            os.dup2(chromium_writes, _PIPES[1])
            end_with_parent()

        try:
            with Path(self._folder, "log").open("wb") as log:
                self.process = subprocess.Popen(
                    [
                        *self.command,
                        f"--user-data-dir={self._folder}/profile",
                        "--remote-debugging-pipe",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=connect_pipes,
                    pass_fds=_PIPES,
                    env=os.environ | {MARK: self._mark, "TMPDIR": self._folder},
                )
        except OSError as error:
            for end in (write, read):
                os.close(end)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise BrowserGone(f"cannot start {self.command[0]}: {error.strerror}") from error
        finally:
            os.close(chromium_reads)
            os.close(chromium_writes)
        reader = asyncio.StreamReader(limit=MAX_MESSAGE)
        protocol = asyncio.StreamReaderProtocol(reader)
        self._read, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read, "rb"))
        self._write, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(write, "wb"))
        self.alive = True
        self._reading = loop.create_task(self._listen(reader))
        try:
            await self.send("Browser.getVersion")
        except BaseException as error:
            output = last_lines(Path(self._folder, "log").read_text(errors="replace"), 3)
            await self.stop()
            if not isinstance(error, BrowserGone):
                raise
            path = self.command[0]
            raise BrowserGone(f"{path} exited at its start; its last output:\n{output}") from None

    def send(
        self, method: str, parameters: dict[str, Any] | None = None, *, target: str = ""
    ) -> asyncio.Future[dict[str, Any]]:
        """Send a command; the commands to one target are executed in order.

        Args:
            method: `Domain.command`.
            parameters: parameters of the command.
            target: CDP session of a page; empty for the browser itself.

        Returns:
            A future of the response, which raises BrowserError if Chromium refuses or the page is
            gone, BrowserGone if the browser is.
        """
        future = asyncio.get_running_loop().create_future()
        # Retrieved here so that a future that is never awaited logs no warning.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not self.alive:
            future.set_exception(BrowserGone("the browser is gone"))
            return future
        message: dict[str, Any] = {"id": next(self._ids), "method": method}
        message["params"] = parameters or {}
        if target:
            message["sessionId"] = target
        self._waiting[message["id"]] = target, future
        self._write.write(json.dumps(message).encode() + b"\0")
        return future

    def listen(self, target: str, handler: Handler | None) -> None:
        """Call `handler` with the events of a target from now on; None removes the handler."""
        if handler is None:
            self._handlers.pop(target, None)
        else:
            self._handlers[target] = handler

    def page_is_gone(self, target: str, reason: str) -> None:
        """Fail every pending command of a page."""
        self._fail(BrowserError(reason), target)

    async def ping(self) -> None:
        """Wait until the browser responds."""
        await self.send("Browser.getVersion")

    async def stop(self) -> None:
        """Kill the process and everything that it started."""
        self.alive = False
        await asyncio.to_thread(self._clean)
        self._write.close()
        self._read.close()
        await self._reading

    def _clean(self) -> None:
        # All at once: a frozen child would outlive the browser and become an orphan.
        kill_marked(f"{MARK}={self._mark}")
        self.process.kill()  # for systems without /proc
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._receive(json.loads((await reader.readuntil(b"\0"))[:-1]))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            pass  # the pipe is closed: the browser has exited; or what comes is not Chromium's
        finally:
            self.alive = False
            self._fail(BrowserGone("the browser is gone"))

    def _fail(self, error: BrowserError, target: str = "") -> None:
        for number, (one, future) in list(self._waiting.items()):
            if target in ("", one):
                del self._waiting[number]
                if not future.done():
                    future.set_exception(error)

    def _receive(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            handler = self._handlers.get(message.get("sessionId", ""))
            if handler is not None:
                handler(message["method"], message["params"])
            return
        _, future = self._waiting.pop(message["id"], ("", None))
        if future is None or future.done():
            return  # its sender no longer waits
        if "error" in message:
            future.set_exception(BrowserError(message["error"]["message"]))
        else:
            future.set_result(message["result"])


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
