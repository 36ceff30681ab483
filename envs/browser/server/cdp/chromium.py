"""A Chromium process, spoken to in the Chrome DevTools Protocol over two pipes.

One JSON message after another, each ended by a zero byte; many may be on their way at once.
No port is opened, and a Chromium whose pipes close ends itself.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envs.browser.server.processes import kill_marked

Handler = Callable[[str, dict[str, Any]], None]
"""Told of a target's events: (method, parameters)."""

MAX_MESSAGE = 256 * 2**20  # bytes; a picture of a large page is a few million
MARK = "GRPO_BROWSER"
_PR_SET_PDEATHSIG = 1
_PIPES = (3, 4)  # where Chromium reads commands and writes answers
_PIPED = ("--remote-debugging-pipe",)


class CDPError(RuntimeError):
    """Chromium refused a command, or the page it was for is gone."""


class BrowserGone(CDPError):
    """The Chromium process ended."""


class Chromium:
    """One Chromium process.

    Attributes:
        alive: False before `start` and from the end of the process on.
    """

    def __init__(self, command: Sequence[str]):
        """Describe the process.

        Args:
            command: the executable and its arguments.
        """
        self.command = list(command)
        self.alive = False
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._handlers: dict[str, Handler] = {}
        self._mark = uuid.uuid4().hex

    async def start(self) -> None:
        """Start the process, and wait until it answers.

        Raises:
            BrowserGone: it ended at its start; the message holds its last words.
        """
        loop = asyncio.get_running_loop()
        self._folder = tempfile.mkdtemp(prefix="grpo-chromium-")
        # Above the two numbers that Chromium wants, so that neither copy overwrites the other.
        ends = [end for pair in (os.pipe(), os.pipe()) for end in pair]
        theirs_read, write, read, theirs_write = [_moved_up(end) for end in ends]

        def wire() -> None:
            os.dup2(theirs_read, _PIPES[0])
            os.dup2(theirs_write, _PIPES[1])
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

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
                preexec_fn=wire,
                pass_fds=_PIPES,
                env=os.environ | {MARK: self._mark, "TMPDIR": self._folder},
            )
        os.close(theirs_read)
        os.close(theirs_write)
        reader = asyncio.StreamReader(limit=MAX_MESSAGE)
        protocol = asyncio.StreamReaderProtocol(reader)
        self._read, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read, "rb"))
        self._write, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(write, "wb"))
        self.alive = True
        self._reading = loop.create_task(self._listen(reader))
        try:
            await self.send("Browser.getVersion")
        except BaseException as error:
            words = Path(self._folder, "log").read_text(errors="replace")[-2000:]
            await self.stop()
            if not isinstance(error, BrowserGone):
                raise
            raise BrowserGone(f"Chromium ended at its start; its last words:\n{words}") from None

    def send(
        self, method: str, parameters: dict[str, Any] | None = None, *, target: str = ""
    ) -> asyncio.Future[dict[str, Any]]:
        """Send a command; commands to one target are done in the order they were sent.

        Args:
            method: `Domain.command`.
            parameters: the command's own.
            target: the CDP session of a page; empty for the browser itself.

        Returns:
            A future of the answer. It raises CDPError if Chromium refuses, or BrowserGone.
        """
        future = asyncio.get_running_loop().create_future()
        # Who awaits it sees its exception; nobody has to await it.
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
        """Tell `handler` of a target's events from now on; None ends that."""
        if handler is None:
            self._handlers.pop(target, None)
        else:
            self._handlers[target] = handler

    def page_is_gone(self, target: str, reason: str) -> None:
        """Let every command that a page has not answered fail."""
        self._fail(CDPError(reason), target)

    async def stop(self) -> None:
        """End the process and all that it started."""
        self.alive = False
        await asyncio.to_thread(self._clean)
        self._write.close()
        self._read.close()
        await self._reading

    def _clean(self) -> None:
        # All at once: a frozen child would outlive the browser, and then be nobody's.
        kill_marked(f"{MARK}={self._mark}")
        self.process.kill()  # where there is no /proc
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self._receive(json.loads((await reader.readuntil(b"\0"))[:-1]))
        except (asyncio.IncompleteReadError, OSError):
            pass  # the pipe ended, and with it the browser
        finally:
            self.alive = False
            self._fail(BrowserGone("the browser is gone"))

    def _fail(self, error: CDPError, target: str = "") -> None:
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
            return  # whoever asked has stopped waiting
        if "error" in message:
            future.set_exception(CDPError(message["error"]["message"]))
        else:
            future.set_result(message["result"])


def _moved_up(descriptor: int) -> int:
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
