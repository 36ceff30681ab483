"""Infrastructure failures at random moments, for `benchmarks/soak.py`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Collection, Sequence

from rich.console import Console

from envs.base import EnvError
from envs.browser.env import BrowserEnv
from envs.browser.server.local import LocalServer
from tests.support.processes import chromiums, freeze, running

FAULTS = (
    *("kill-browser", "hang-browser", "kill-page", "hang-page"),
    *("kill-node", "kill-server", "stall-server", "cut-connection"),
)

SITE_FAULTS = ("kill-app",)
"""Faults of users' sites: the app of a site."""


class Faults:
    """Injects one fault after the other, each kind equally often.

    Args:
        kinds: the kinds to inject, of `FAULTS` and `SITE_FAULTS`.
        server: the server whose processes are killed and stopped.
        playing: environments in use; the connection of a random one is cut.
        gap_s: mean seconds from the end of a fault to the next one.
        hang_s: seconds after which a stopped browser or page resumes unless it was killed.
        stall_s: seconds after which the stopped server resumes.
        seed: random seed of the order and the moments.
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
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def run(self, console: Console) -> None:
        """Inject faults until cancelled."""
        waiting: list[str] = []
        while True:
            await asyncio.sleep(self.gap_s * self.random.uniform(0.5, 1.5))
            waiting = waiting or self.random.sample(self.kinds, len(self.kinds))
            fault = waiting.pop()
            console.print(fault)
            try:
                await self._inject(fault)
                self.done[fault] += 1
            except (EnvError, OSError, IndexError):
                console.print("postponed: its target is restarting")
                waiting.insert(0, fault)

    async def _inject(self, fault: str) -> None:
        verb, _, target = fault.partition("-")
        if target in ("browser", "page"):
            pid = self.random.choice(chromiums(self.server.processes(), pages=target == "page"))
            if verb == "kill":
                os.kill(pid, signal.SIGKILL)
            else:
                await freeze(pid, self.hang_s)
        elif target in ("node", "app"):
            parts = (b"/node\0", b"run-driver") if target == "node" else (b"app:app",)
            os.kill(self.random.choice(running(self.server.processes(), parts)), signal.SIGKILL)
        elif fault == "kill-server":
            os.kill(self.server.pid, signal.SIGKILL)
        elif fault == "stall-server":
            await freeze(self.server.pid, self.stall_s)
        elif fault == "cut-connection":
            connected = [env._client for env in self.playing if getattr(env._client, "_ws", None)]
            self.random.choice(connected)._ws.transport.abort()
