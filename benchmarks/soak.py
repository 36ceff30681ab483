"""Thousands of episodes through `EnvPool` and `BrowserEnv`: what is lost, wrong, or left.

The oracle of `envs.browser.miniwob.solvers` plays all the tasks that it solves, in turn, so an episode that is
finished without reward 1 is `wrong`. An exception costs the attempt (`lost`); the second attempt,
in a fresh session, costs the episode (`dropped`). Ends with status 1 if an episode was wrong, a
call took longer than its deadline, a process was left, or, without --faults, something was lost.

    python benchmarks/soak.py                                # does memory grow?
    python benchmarks/soak.py --faults --episodes 1000       # is every failure noticed?
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.episodes import pss
from benchmarks.rollouts import slope
from benchmarks.rollouts_worker import MOST_STEPS
from envs.base import Env, EnvError, Task
from envs.browser.actions import Action, format_action
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.prompts import Element
from envs.browser.server.local import LocalServer
from envs.pool import EnvPool
from tests.support.faults import FAULTS, Faults

WARM_UP = 500
"""Episodes after which memory should stand still."""

SLACK_S = 3.0
"""Seconds past its deadline after which a call is late."""

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_LINE = re.compile(rf"(\S+)(?: ({_QUOTED}))?(?: \[(\w+)\])?(.*)")

console = Console(stderr=True)


class Soak:
    """The episodes and what became of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.server = LocalServer(arguments.workers, max_sessions=4 * arguments.sessions)
        self.pool = EnvPool(self._connect, arguments.sessions)
        self.playing: set[BrowserEnv] = set()
        self.faults = Faults(
            arguments.faults or [],
            self.server,
            self.playing,
            gap_s=arguments.gap,
            hang_s=2 * arguments.deadline,
            stall_s=arguments.stall,
            seed=arguments.seed,
        )
        self.finished = self.lost = self.dropped = self.late = 0
        self.longest_call = self.longest_attempt = 0.0
        self.wrong: list[str] = []
        self.memory: list[tuple[int, float]] = []

    async def run(self) -> dict[str, Any]:
        """Play all episodes and close the server."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        names = self.arguments.tasks
        tasks = (
            Task(names[i % len(names)], i // len(names)) for i in range(self.arguments.episodes)
        )
        try:
            async with self.pool.lease() as env:
                await env.reset(Task(names[0], 0))  # loads what the first one loads
            self.begun = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                playing = [
                    group.create_task(self._session(tasks)) for _ in range(self.arguments.sessions)
                ]
                if self.arguments.faults:
                    faults = group.create_task(self.faults.run(console))
                    await asyncio.wait(playing)
                    faults.cancel()
            seconds = time.perf_counter() - self.begun
        finally:
            await self.pool.close()
            await asyncio.to_thread(self.server.close)
        return {
            "episodes": self.finished,
            "episodes_per_s": self.finished / seconds,
            "lost": self.lost,
            "dropped": self.dropped,
            "wrong": self.wrong,
            "deadline_s": self.arguments.deadline,
            "longest_call_s": self.longest_call,
            "longest_attempt_s": self.longest_attempt,
            "late": self.late,
            "memory_mb": self.memory,
            "mb_per_1000_episodes": growth(self.memory),
            "faults": dict(self.faults.done),
            "processes_left": len(self.server.processes()),
        }

    async def _connect(self) -> BrowserEnv:
        url = await self.server.ensure()
        return BrowserEnv(url, deadline_s=self.arguments.deadline)

    async def _session(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if not (await self._attempt(task) or await self._attempt(task, fresh=True)):
                self.dropped += 1
            elif self.finished % self.arguments.every == 0:
                await self._report()

    async def _attempt(self, task: Task, fresh: bool = False) -> bool:
        """Play one episode; False if the machinery failed."""
        begun = time.perf_counter()
        try:
            async with self.pool.lease(fresh=fresh) as env:
                assert isinstance(env, BrowserEnv)
                self.playing.add(env)
                try:
                    outcome = await self._play(env, task)
                finally:
                    self.playing.remove(env)
        except EnvError as error:
            self.lost += 1
            why = str(error).splitlines()[0]
            console.print(f"lost {task.name} {task.seed}: {why}", markup=False, soft_wrap=True)
            return False
        finally:
            self.longest_attempt = max(self.longest_attempt, time.perf_counter() - begun)
        self.finished += 1
        if outcome:
            self.wrong.append(f"{task.name} {task.seed}: {outcome}")
            console.print(f"wrong {self.wrong[-1]}", markup=False, soft_wrap=True)
        return True

    async def _play(self, env: Env, task: Task) -> str:
        """Return why the episode is wrong, empty if it is right."""
        observation = await self._timed(env.reset(task))
        for step in range(MOST_STEPS):
            try:
                action = SOLVERS[task.name](observation.goal, read_page(observation.page), step)
            except LookupError as error:
                return str(error)
            result = await self._timed(env.step(format_action(action)))
            if result.observation.error.endswith("another element covers it"):
                # Some seeds lay one button over another; the keyboard reaches both.
                press = Action("press", (action.args[0], "Enter"))
                result = await self._timed(env.step(format_action(press)))
            if result.done:
                return "" if result.reward == 1 else f"reward {result.reward:g}"
            observation = result.observation
        return f"not over after {MOST_STEPS} steps; the last error: {observation.error}"

    async def _timed(self, call: Any) -> Any:
        begun = time.perf_counter()
        try:
            return await call
        finally:
            seconds = time.perf_counter() - begun
            self.longest_call = max(self.longest_call, seconds)
            self.late += seconds > self.arguments.deadline + SLACK_S

    async def _report(self) -> None:
        finished = self.finished
        megabytes = await asyncio.to_thread(lambda: pss(self.server.processes()))
        self.memory.append((finished, megabytes))
        rate = finished / (time.perf_counter() - self.begun)
        console.print(
            f"{finished} episodes, {rate:.1f}/s, load {os.getloadavg()[0]:.1f}: {megabytes:.0f} MB,"
            f" {self.lost} lost, {self.dropped} dropped, {len(self.wrong)} wrong"
        )


def read_page(page: str) -> list[Element]:
    """Turn the lines of `Observation.page` back into elements."""
    elements = []
    for line in page.splitlines():
        match = _LINE.fullmatch(line)
        assert match, line
        role, name, bid, state = match.groups()
        elements.append(Element(bid or "", role, ast.literal_eval(name) if name else "", state))
    return elements


def growth(memory: Sequence[tuple[int, float]]) -> float | None:
    """Return MB for each 1000 episodes after the warm-up, from (episodes, MB)."""
    return slope([(episodes / 1000, mb) for episodes, mb in memory if episodes >= WARM_UP])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=3000)
    parser.add_argument("--sessions", type=int, default=8, help="at a time")
    parser.add_argument("--workers", type=int, default=2, help="the server's Chromiums")
    parser.add_argument("--tasks", nargs="+", default=sorted(SOLVERS), choices=sorted(SOLVERS),
                        metavar="TASK", help="default: all that the oracle solves")  # fmt: skip
    parser.add_argument("--every", type=int, default=100, help="episodes between two reports")
    parser.add_argument("--deadline", type=float, default=45.0, help="seconds for a call")
    parser.add_argument("--faults", nargs="*", choices=FAULTS, metavar="FAULT",
                        help=f"inject these, or all: {', '.join(FAULTS)}")  # fmt: skip
    parser.add_argument("--gap", type=float, default=20.0, help="mean seconds between two faults")
    parser.add_argument("--stall", type=float, default=30.0, help="seconds of a server's stall")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' order and moments")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args(argv)
    if arguments.faults == []:
        arguments.faults = FAULTS
    result = asyncio.run(Soak(arguments).run())
    table = Table(show_header=False)
    for name, value in (result | {"wrong": len(result["wrong"])}).items():
        if name != "memory_mb":
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))
    broken = result["lost"] and not arguments.faults
    return int(bool(result["wrong"] or result["late"] or result["processes_left"] or broken))


if __name__ == "__main__":
    sys.exit(main())
