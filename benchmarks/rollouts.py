"""Episodes per second without a model: our server compared with plain BrowserGym.

The oracle of `envs.browser.miniwob.solvers` plays. Each kind drives the same Chromium from its own
process, and they take turns, so that a slow minute of the machine affects all of them. BrowserGym
plays one episode after the other; the server plays many sessions of one client at once.

    python -m benchmarks.rollouts                 # 10 minutes on two cores
    python -m benchmarks.rollouts --tasks click-test --sessions 1 8 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from envs.browser.miniwob.solvers import SOLVERS

ROOT = Path(__file__).resolve().parent.parent

DEFAULTS, TUNED = "BrowserGym, defaults", "BrowserGym, tuned"
SERVER = "server"
OPTIONS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    TUNED: {"slow_mo": 0, "pre_observation_delay": 0.0, "disable_env_checker": True},
}
"""Options for `gymnasium.make` that do not change the observation."""

Point = tuple[str, str, int]
"""Task, kind, number of sessions."""

console = Console(stderr=True)


class Worker:
    """One kind in its own process; see `benchmarks.rollouts_worker`."""

    def __init__(self, kind: str, settings: dict[str, Any], folder: str) -> None:
        self.kind = kind
        self.log = Path(folder, f"{kind}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.rollouts_worker", json.dumps(settings)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._read()

    def measure(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the response.

        Raises:
            RuntimeError: the process ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace")[-1000:]
            raise RuntimeError(f"{self.kind} ended with {self.process.wait()}:\n{tail}")
        response: dict[str, Any] = json.loads(line)
        return response


def compare(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure every kind on every task, in turn, `rounds` times."""
    most = max(arguments.sessions)
    settings: dict[str, dict[str, Any]] = {
        kind: {"options": options} for kind, options in OPTIONS.items()
    }
    settings[SERVER] = {"workers": arguments.workers, "sessions": most}
    workers: dict[str, Worker] = {}
    responses: dict[Point, list[dict[str, Any]]] = defaultdict(list)
    try:
        for kind in arguments.kinds:
            workers[kind] = Worker(kind, settings[kind], folder)
        for number in range(1, arguments.rounds + 1):
            for task in arguments.tasks:
                for kind, worker in workers.items():
                    for sessions in arguments.sessions if kind == SERVER else (1,):
                        request = {"task": task, "sessions": sessions, "seconds": arguments.seconds}
                        responses[task, kind, sessions].append(worker.measure(**request))
            rates = [f"{rounds[-1]['rate']:.2f}" for rounds in responses.values()]
            load = os.getloadavg()[0]
            console.print(f"round {number}, load {load:.1f}: {' '.join(rates)} episodes/s")
    finally:
        for worker in workers.values():
            worker.close()
    return summarize(responses)


def summarize(responses: Mapping[Point, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Combine the rounds.

    Args:
        responses: of the worker at each point, one per round.

    Returns:
        `points` (median rate in episodes/s, milliseconds over all rounds, median MB); per task
        `ratio_<task>` (the server's best rate over BrowserGym's with its defaults) and
        `ratio_tuned_<task>`; the server's `mb_per_session`; how many were `wrong` or `lost`.
    """
    points = []
    for (task, kind, sessions), rounds in responses.items():
        point: dict[str, Any] = {"task": task, "kind": kind, "sessions": sessions}
        point["rate"] = median(measured["rate"] for measured in rounds)
        point["rates"] = [measured["rate"] for measured in rounds]
        for name in ("reset", "step"):
            times = [1000 * seconds for measured in rounds for seconds in measured[f"{name}s"]]
            point[f"{name}_p50"] = median(times) if times else None
            point[f"{name}_p95"] = percentile_95(times)
        point["memory_mb"] = median(measured["memory"] for measured in rounds)
        points.append(
            point | {key: sum(measured[key] for measured in rounds) for key in ("wrong", "lost")}
        )
    result: dict[str, Any] = {}
    for task in dict.fromkeys(point["task"] for point in points):
        rates: dict[str, float] = defaultdict(float)
        for point in points:
            if point["task"] == task:
                rates[point["kind"]] = max(rates[point["kind"]], point["rate"])
        name = task.replace("-", "_")
        result[f"ratio_{name}"] = ratio(rates[SERVER], rates[DEFAULTS])
        result[f"ratio_tuned_{name}"] = ratio(rates[SERVER], rates[TUNED])
    ours = [point for point in points if point["kind"] == SERVER]
    result["mb_per_session"] = slope([(p["sessions"], p["memory_mb"]) for p in ours])
    result |= {key: sum(point[key] for point in points) for key in ("wrong", "lost")}
    return result | {"points": points}


def ratio(rate: float, other: float) -> float | None:
    """Return rate / other, None if the other's episodes were all wrong or lost or not measured."""
    return rate / other if other else None


def percentile_95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile, None for fewer than two values."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else None


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the slope of the least-squares line, None if all x are equal."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return linear_regression(xs, ys).slope if len(set(xs)) > 1 else None


def show(result: dict[str, Any], workers: int) -> None:
    """Print one table per task."""
    defaults: dict[str, float] = defaultdict(float)
    defaults |= {p["task"]: p["rate"] for p in result["points"] if p["kind"] == DEFAULTS}
    tables: dict[str, Table] = {}
    for point in result["points"]:
        task, name = point["task"], point["kind"]
        if task not in tables:
            title = f"{task} (the server has {workers} Chromiums; times in ms)"
            tables[task] = Table(title=title, box=SIMPLE_HEAD)
            tables[task].add_column("", no_wrap=True)
            for heading in ("episodes/s", "ratio", "reset p50 p95", "step p50 p95", "MB"):
                tables[task].add_column(heading, justify="right")
        if name == SERVER:
            name += f", {point['sessions']} sessions"
        tables[task].add_row(
            name,
            shown(point["rate"], 2),
            shown(ratio(point["rate"], defaults[task]), 1),
            f"{shown(point['reset_p50'])} {shown(point['reset_p95'])}",
            f"{shown(point['step_p50'])} {shown(point['step_p95'])}",
            shown(point["memory_mb"]),
        )
    Console().print(*tables.values(), sep="\n")
    more = f"{shown(result['mb_per_session'], 1)} MB per additional session"
    Console().print(f"{result['wrong']} wrong, {result['lost']} lost; {more}")


def shown(value: float | None, digits: int = 0) -> str:
    """Format a number of the table."""
    return "-" if value is None else f"{value:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every kind and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="minimum seconds per point and round"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements per point")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 2, 4, 8, 16],
                        help="numbers of concurrent sessions on the server")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="Chromiums of the server")
    parser.add_argument("--tasks", nargs="+", default=["click-test", "login-user"],
                        choices=sorted(SOLVERS), metavar="TASK",
                        help="tasks that the oracle solves")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=[*OPTIONS, SERVER], metavar="KIND",
                        default=[*OPTIONS, SERVER],
                        help="what to measure (default: everything)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = compare(arguments, folder)
    show(result, arguments.workers)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
