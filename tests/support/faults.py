"""Failures of the machinery at random moments, for `benchmarks/soak.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console

from envs.base import EnvError
from envs.browser.env import BrowserEnv
from envs.browser.server.local import LocalServer

FAULTS = (
    *("kill-browser", "hang-browser", "kill-page", "hang-page"),
    *("kill-server", "stall-server", "cut-connection"),
)

# A shell lets the process go even if this one is killed meanwhile.
_FREEZE = 'kill -STOP "$1" && sleep "$2"; kill -CONT "$1"'


class Faults:
    """Breaks one thing after the other, each kind as often as the others.

    Args:
        kinds: of `FAULTS`.
        server: whose processes are killed and stopped.
        playing: environments of which one's connection is cut; looked at when it happens.
        gap_s: mean seconds from the end of a fault to the next one.
        hang_s: seconds after which a stopped browser or page goes on, if nobody killed it.
        stall_s: seconds after which the stopped server goes on.
        seed: of the order and the moments.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        server: LocalServer,
        playing: Collection[BrowserEnv],
        *,
        gap_s: float,
        hang_s: float,
        stall_s: float,
        seed: int,
    ) -> None:
        self.kinds = kinds
        self.server = server
        self.playing = playing
        self.gap_s = gap_s
        self.hang_s = hang_s
        self.stall_s = stall_s
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run(self, console: Console) -> None:
        """Break things until cancelled."""
        waiting: list[str] = []
        while True:
            await asyncio.sleep(self.gap_s * self.dice.uniform(0.5, 1.5))
            waiting = waiting or self.dice.sample(self.kinds, len(self.kinds))
            fault = waiting.pop()
            console.print(fault)
            try:
                await self._inject(fault)
                self.done[fault] += 1
            except (EnvError, OSError, IndexError):
                console.print("not now: what it would break is starting anew")
                waiting.insert(0, fault)

    async def _inject(self, fault: str) -> None:
        verb, _, what = fault.partition("-")
        if what in ("browser", "page"):
            pid = self.dice.choice(chromiums(self.server.processes(), pages=what == "page"))
            if verb == "kill":
                os.kill(pid, signal.SIGKILL)
            else:
                await freeze(pid, self.hang_s)
        elif fault == "kill-server":
            os.kill(self.server.pid, signal.SIGKILL)
        elif fault == "stall-server":
            await freeze(self.server.pid, self.stall_s)
        elif fault == "cut-connection":
            connected = [env._client for env in self.playing if getattr(env._client, "_ws", None)]
            self.dice.choice(connected)._ws.transport.abort()


async def freeze(pid: int, seconds: float) -> None:
    """Stop a process, and let it go after a time, at the latest when this is cancelled.

    Returns earlier if someone kills the process meanwhile.
    """
    shell = subprocess.Popen(
        ["sh", "-c", _FREEZE, "sh", str(pid), str(seconds)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while shell.poll() is None and Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.1)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def chromiums(pids: Sequence[int], *, pages: bool = False) -> list[int]:
    """Pick the main process of each Chromium, or the processes that show its pages."""
    found = []
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        # A child may show its command as one text, with spaces where others have zeros.
        wanted = b"--type=renderer" in command if pages else b"--type=" not in command
        if b"chrom" in command.split(b"\0")[0] and wanted:
            found.append(pid)
    return found
