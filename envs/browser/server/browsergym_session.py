"""One session of stock BrowserGym, for every task that is neither MiniWoB's nor a `WebTask`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, NoReturn

from envs.base import TaskError
from envs.browser.actions import Action
from envs.browser.limits import MAX_RESPONSE
from envs.browser.server.errors import SessionError
from envs.browser.server.processes import kill_marked, last_lines

CLOSE_DEADLINE_S = 8.0
MARK = "GRPO_BROWSERGYM_SESSION"
PYTHON = "GRPO_BROWSERGYM_PYTHON"
"""Environment variable with the interpreter that has BrowserGym and the benchmarks; this one by
default. WorkArena, for one, refuses every Playwright but its own."""


class BrowserGymSession:
    """A process with BrowserGym's environment, kept from episode to episode.

    The process has its own Playwright and, in each episode, two Chromiums, as BrowserGym starts
    them: no Chromium of the server is used. After an infrastructure failure the process and all
    that it started are killed, and the session is lost.

    Args:
        task_file: file of the user's own tasks; None for none.
        deadline_s: seconds that a reset or a step may take.
    """

    def __init__(self, task_file: str | Path | None = None, *, deadline_s: float = 120.0):
        self.deadline_s = deadline_s
        self._task_file = "" if task_file is None else str(Path(task_file).resolve())
        self._process: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None
        self._mark = uuid.uuid4().hex
        self._running = False
        self._lost = ""

    async def reset(
        self, task_name: str, seed: int, *, screenshot: bool = False, final_page: bool = True
    ) -> dict[str, Any]:
        """Start an episode and return its first observation, as `Session.reset` does.

        Args:
            task_name: a task of the file, or a registered one such as `webarena.310`, with or
                without the prefix `browsergym/`.
            seed: seed of the task.
            screenshot: True to include a screenshot in every observation, and in its metadata
                the `boxes` of the elements by their ids: (x, y, width, height) in pixels.
            final_page: False to leave out the tree of the finished page.

        Raises:
            TaskError: there is no such task, BrowserGym cannot make it, or its own code failed.
            SessionError: the infrastructure failed; the session is lost.
        """
        self._running = False
        options = {"screenshot": screenshot, "final_page": final_page}
        observation = await self._call("reset", task_name=task_name, seed=seed, **options)
        self._running = True
        return observation

    async def step(self, action: Action) -> dict[str, Any]:
        """Execute one action and return its outcome, as `Session.step` does.

        Raises:
            TaskError: the task's own code failed.
            SessionError: no episode is running, or the infrastructure failed.
        """
        if not self._running:
            raise SessionError("no episode is running: reset first")
        observation = await self._call("step", name=action.name, args=action.args)
        self._running = not observation["done"]
        return observation

    async def close(self) -> None:
        """End the session: let the task remove what it has made, then end all processes."""
        try:
            if self._process is not None and not self._lost:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CLOSE_DEADLINE_S):
                        await self._exchange(self._process, {"call": "close"})
        finally:
            await self._lose("it was closed")

    async def _call(self, call: str, **arguments: Any) -> dict[str, Any]:
        if self._lost:
            raise SessionError(f"the session is lost ({self._lost}): open a new one")
        try:
            async with asyncio.timeout(self.deadline_s):
                process = self._process or await self._start()
                line = await self._exchange(process, {"call": call, **arguments})
            response = json.loads(line) if line else {}
        except TimeoutError:
            await self._fail(f"no response within {self.deadline_s:g} s")
        except (OSError, ValueError) as error:
            await self._fail(f"BrowserGym's process responded wrongly: {error}")
        except asyncio.CancelledError:
            await self._lose("a call was cancelled")
            raise
        if "task_error" in response:
            if response.get("lost"):
                await self._lose("the task's own code failed")
            raise TaskError(response["task_error"])
        if "result" not in response:
            await self._fail(response.get("failure") or self._last_output())
        result: dict[str, Any] = response["result"]
        return result

    async def _start(self) -> asyncio.subprocess.Process:
        self._folder = Path(tempfile.mkdtemp(prefix="grpo-browsergym-"))
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        python = os.environ.get(PYTHON) or sys.executable
        module = "envs.browser.server.browsergym_worker"
        environment = {MARK: self._mark, "TMPDIR": str(self._folder), "PYTHONPATH": path}
        with (self._folder / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                # -P: a folder `envs` in the working directory is not this package.
                *(python, "-P", "-m", module, self._task_file),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=MAX_RESPONSE,
                start_new_session=True,  # Ctrl-C reaches only the server, which then ends this
                env=os.environ | environment,
            )
        return self._process

    async def _exchange(self, process: asyncio.subprocess.Process, request: Any) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        return await process.stdout.readline()

    async def _fail(self, reason: str) -> NoReturn:
        await self._lose(reason)
        raise SessionError(f"the session is lost: {reason}")

    async def _lose(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._running = False
        process, self._process = self._process, None
        if process is not None:
            await asyncio.shield(asyncio.create_task(self._clean(process)))

    async def _clean(self, process: asyncio.subprocess.Process) -> None:
        # All at once: a frozen child would outlive the process and become an orphan.
        await asyncio.to_thread(kill_marked, f"{MARK}={self._mark}", process.pid)
        if process.returncode is None:  # for systems without /proc
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)  # `kill` of asyncio's races with its own wait
        await process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _last_output(self) -> str:
        log = (self._folder / "log").read_text(errors="replace") if self._folder else ""
        return f"BrowserGym's process ended: {last_lines(log)}"
