"""Thousands of episodes through `EnvPool` and `BrowserEnv`: lost and wrong ones, memory, processes.

The oracle of `envs.browser.miniwob.solvers` plays every task that it solves, in turn, or the
demonstrations of a file of tasks; an episode that ends without success is `wrong`. If an attempt
raises EnvError it is `lost` and repeated in a fresh session; if that fails too, the episode is
`dropped`. The exit status is 1 if an episode was wrong, a call exceeded its deadline, a process was
left or, without --faults, an attempt was lost.

    python -m benchmarks.soak                                # does memory grow?
    python -m benchmarks.soak --faults --episodes 1000       # is every failure noticed?
    python -m benchmarks.soak --task-file examples/sites/shop/tasks.py --faults --episodes 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.episodes import pss
from benchmarks.rollouts import slope
from benchmarks.rollouts_worker import MAX_TURNS
from envs.base import EnvError, Task
from envs.browser.actions import Action, format_action, parse_action
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.server.local import LocalServer
from envs.browser.task_file import TaskFile
from envs.pool import EnvPool
from tests.support.faults import FAULTS, SITE_FAULTS, Faults

WARM_UP = 500
"""Episodes after which memory should stop growing."""

SLACK_S = 3.0
"""Seconds past its deadline after which a call is late."""

console = Console(stderr=True)
Result = TypeVar("Result")


class SolverEnv(BrowserEnv):
    """A `BrowserEnv` whose solver can be asked for a given step and says why it gives up."""

    def solve(self, task: Task, step: int) -> Action:
        """Return the solver's action at a step, counted from 0.

        Raises:
            LookupError: the page lacks what the solver needs.
        """
        if task.name in SOLVERS:
            return SOLVERS[task.name](self._observation.goal, self._elements, step)
        if not (action := self.demonstrate()):
            raise LookupError(f"nothing to demonstrate on: {self._observation.page[:200]!r}")
        return parse_action(action)


class Soak:
    """Plays the episodes and counts their outcomes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.server = LocalServer(
            arguments.workers,
            max_sessions=4 * arguments.sessions,
            task_file=arguments.task_file,
        )
        self.pool = EnvPool(self._connect, arguments.sessions)
        self.playing: set[SolverEnv] = set()
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
                await env.reset(Task(names[0], 0))  # starts the server
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

    async def _connect(self) -> SolverEnv:
        url = await self.server.ensure()
        return SolverEnv(url, deadline_s=self.arguments.deadline)

    async def _session(self, tasks: Iterator[Task]) -> None:
        for task in tasks:
            if not (await self._attempt(task) or await self._attempt(task, fresh=True)):
                self.dropped += 1
            elif self.finished % self.arguments.every == 0:
                await self._report()

    async def _attempt(self, task: Task, fresh: bool = False) -> bool:
        """Play one episode; return False if the infrastructure failed."""
        begun = time.perf_counter()
        try:
            async with self.pool.lease(fresh=fresh) as env:
                assert isinstance(env, SolverEnv)
                self.playing.add(env)
                try:
                    outcome = await self._play(env, task)
                finally:
                    self.playing.remove(env)
        except EnvError as error:
            self.lost += 1
            reason = str(error).splitlines()[0]
            console.print(f"lost {task.name} {task.seed}: {reason}", markup=False, soft_wrap=True)
            return False
        finally:
            self.longest_attempt = max(self.longest_attempt, time.perf_counter() - begun)
        self.finished += 1
        if outcome:
            self.wrong.append(f"{task.name} {task.seed}: {outcome}")
            console.print(f"wrong {self.wrong[-1]}", markup=False, soft_wrap=True)
        return True

    async def _play(self, env: SolverEnv, task: Task) -> str:
        """Return why the episode is wrong, empty if it is right."""
        observation = await self._timed(env.reset(task))
        for step in range(MAX_TURNS):
            try:
                action = env.solve(task, step)
            except LookupError as error:
                return str(error)
            result = await self._timed(env.step(format_action(action)))
            if result.observation.error.endswith("another element covers it"):
                # Some seeds place one button over another; the keyboard reaches both.
                press = Action("press", (action.args[0], "Enter"))
                result = await self._timed(env.step(format_action(press)))
            if result.done:
                return "" if result.success else f"reward {result.reward:g}"
            observation = result.observation
        return f"not over after {MAX_TURNS} steps; the last error: {observation.error}"

    async def _timed(self, call: Awaitable[Result]) -> Result:
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


def growth(memory: Sequence[tuple[int, float]]) -> float | None:
    """Return the MB per 1000 episodes after the warm-up, from points (episodes, MB)."""
    return slope([(episodes / 1000, mb) for episodes, mb in memory if episodes >= WARM_UP])


def main(argv: Sequence[str] | None = None) -> int:
    """Play the episodes, print the table and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=3000, help="episodes to play")
    parser.add_argument("--sessions", type=int, default=8, help="concurrent sessions")
    parser.add_argument("--workers", type=int, default=2, help="Chromiums of the server")
    parser.add_argument(
        "--task-file", default="", help="file of tasks to play instead of MiniWoB's"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK",
                        help="tasks to play (default: all that the oracle solves)")  # fmt: skip
    parser.add_argument("--every", type=int, default=100, help="episodes between reports")
    parser.add_argument("--deadline", type=float, default=45.0, help="seconds allowed per call")
    kinds = (*FAULTS, *SITE_FAULTS)
    parser.add_argument("--faults", nargs="*", choices=kinds, metavar="FAULT",
                        help=f"faults to inject (default: all): {', '.join(kinds)}")  # fmt: skip
    parser.add_argument("--gap", type=float, default=20.0, help="mean seconds between faults")
    parser.add_argument(
        "--stall", type=float, default=30.0, help="seconds that a stalled server is stopped"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the faults' order and moments"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args(argv)
    if arguments.faults == []:
        arguments.faults = kinds if arguments.task_file else FAULTS
    every = sorted(TaskFile(arguments.task_file).tasks if arguments.task_file else SOLVERS)
    arguments.tasks = arguments.tasks or every
    if unknown := set(arguments.tasks) - set(every):
        parser.error(f"expected tasks of {', '.join(every)}, got {', '.join(sorted(unknown))}")
    result = asyncio.run(Soak(arguments).run())
    table = Table(show_header=False)
    for name, value in (result | {"wrong": len(result["wrong"])}).items():
        if name != "memory_mb":
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))
    lost = result["lost"] and not arguments.faults
    return int(bool(result["wrong"] or result["late"] or result["processes_left"] or lost))


if __name__ == "__main__":
    sys.exit(main())
