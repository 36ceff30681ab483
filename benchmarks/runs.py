"""What a run survives, and what it costs: kills, memory, ranks, faults in the browser.

    python benchmarks/runs.py kills    # one run, killed 50 times and resumed: the same end?
    python benchmarks/runs.py soak     # 500 steps: does memory grow, or the number of files open?
    python benchmarks/runs.py ranks    # 2 ranks beside 1 with twice the groups: same? how fast?
    python benchmarks/runs.py browser  # click-test, and again while everything is killed in turn

The first three train the model of `tests/support/scripted.py`, which needs no browser. With --json
the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from grpo.config import Config
from grpo.distributed import World
from grpo.reporting.loggers import read_metrics
from lora.checkpoint import WEIGHTS_NAME
from tests.support.faults import chromiums
from tests.support.scripted import SETTINGS, run

ROOT = Path(__file__).resolve().parent.parent

CLOCKS = ("time", "seconds/")
"""Metrics that no two runs share."""


def kills(folder: Path, count: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Kill a run at random moments and resume it each time; compare with one that was left alone.

    Each life is a fork of this process, which has imported everything, so that most of it is
    training. It lasts twice the run's length over `count` at most: together they are as long as
    the run, which needs longer, for it begins anew `count` times.
    """
    whole = Config(**SETTINGS, output=str(folder / "whole"), steps=steps, save_every=3)
    killed = replace(whole, output=str(folder / "killed"), resume=True)
    began = time.monotonic()
    live(whole)
    length = time.monotonic() - began
    dice = random.Random(seed)
    deaths = sum(not live(killed, after=dice.uniform(0, 2 * length / count)) for _ in range(count))
    live(killed)
    return {
        "kills": deaths,
        "adapter_equal": same_file(whole, killed, f"adapter/{WEIGHTS_NAME}"),
        "metrics_equal": metrics(whole.folder) == metrics(killed.folder),
        "steps": len(metrics(killed.folder)),
    }


def live(config: Config, after: float | None = None) -> bool:
    """Run in a fork, killed after so many seconds; True if it came to its end.

    Raises:
        RuntimeError: it ended by itself, and not well.
    """
    pid = os.fork()
    if not pid:
        code = 1
        try:
            torch.set_num_threads(1)
            asyncio.run(run(config, World.single()))
            code = 0
        finally:
            os._exit(code)  # nothing of the parent's is closed here
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"a life ended with exit code {os.WEXITSTATUS(status)}")
    return True


def metrics(folder: Path) -> list[dict[str, float]]:
    """Every step's metrics but for the clocks'."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in lines]


def same_file(one: Config, other: Config, name: str) -> bool:
    """Whether two runs left the same bytes."""
    return (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Run many steps; look at memory and open files after a fifth of them and at the end."""
    seen: dict[int, tuple[int, int]] = {}

    def look(step: int) -> None:
        if step in (steps // 5, steps):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen[step] = pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    config = Config(**SETTINGS, output=str(folder / "soak"), steps=steps)
    asyncio.run(run(config, World.single(), on_step=look))
    (memory, files), (memory_end, files_end) = seen[steps // 5], seen[steps]
    return {
        "steps": steps,
        "mb": memory_end / 2**20,
        "mb_grown": (memory_end - memory) / 2**20,
        "files": files_end,
        "files_grown": files_end - files,
    }


def ranks(folder: Path, steps: int, group_size: int) -> dict[str, Any]:
    """Two ranks of two groups beside one of four, each rank on one thread."""
    seconds, gradients, losses = {}, {}, {}
    for size in (1, 2):
        output = folder / f"ranks-{size}"
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
        command = [
            *(sys.executable, *torchrun, str(ROOT / "benchmarks" / "scripted.py")),
            *("--output", str(output), "--steps", str(steps), "--group-size", str(group_size)),
            *("--groups-per-step", str(4 // size), "--env-sessions", str(4 * group_size)),
            *("--valid-action-bonus", "0.5"),  # so that every group teaches from the start
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True)
        lines = read_metrics(output / "metrics.jsonl")
        seconds[size] = (lines[-1]["time"] - lines[0]["time"]) / (len(lines) - 1)
        losses[size] = [line["loss"] for line in lines]
        tensors = torch.load(output / "gradient.pt")
        gradients[size] = torch.cat([tensor.flatten() for tensor in tensors])
    one, two = gradients[1], gradients[2]
    pairs = zip(losses[1], losses[2], strict=True)
    return {
        "steps": steps,
        "loss_difference": max(abs(a - b) for a, b in pairs),
        "gradient_difference": ((one - two).norm() / one.norm()).item(),
        "seconds_a_step_1": seconds[1],
        "seconds_a_step_2": seconds[2],
        "speed_up": seconds[1] / seconds[2],
    }


def browser(folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train on click-test; and again while browser, server and the run itself are killed in turn.

    The sampler lives in the run, so a kill of the run is its death too; the run is resumed. In
    bfloat16 a token may fall otherwise when other requests are in its batch: the two runs reach
    the same success, not the same bits.
    """
    runs = {name: folder / name for name in ("plain", "faulty")}
    assert start_click_test(runs["plain"], steps).wait() == 0
    process = start_click_test(runs["faulty"], steps)
    dice, done, left = random.Random(seed), Counter[str](), 0
    faults = cycle(("kill-browser", "kill-server", "kill-browser", "kill-run"))
    seen: set[int] = set()
    while process.poll() is None:
        time.sleep(dice.uniform(3, 7))
        seen |= (family := set(descendants(process.pid)))
        trains = len(read_metrics(runs["faulty"] / "metrics.jsonl")) > done["kill-run"]
        if not trains or not family or (runs["faulty"] / "adapter").exists():
            continue  # only while it trains: an evaluation that is killed begins anew
        fault = next(faults)
        victims = {"kill-run": [process.pid], "kill-server": children(process.pid)}
        victim = dice.choice(victims.get(fault) or chromiums(sorted(family)))
        os.kill(victim, signal.SIGKILL)
        done[fault] += 1
        if fault == "kill-run":
            process.wait()
            time.sleep(15)  # the server sees that nobody is there any more
            left += len(alive(seen))
            process = start_click_test(runs["faulty"], steps, "--resume")
    assert process.returncode == 0
    left += len(alive(seen))
    lines = {name: read_metrics(path / "metrics.jsonl") for name, path in runs.items()}
    summary = {name: json.loads((path / "summary.json").read_text()) for name, path in runs.items()}
    return {
        "episodes": summary["faulty"]["episodes"],
        **done,
        "failures": lines["faulty"][-1]["env/failures"],
        "dropped": lines["faulty"][-1]["env/episodes_dropped"],
        "success_plain": summary["plain"]["trained"]["sampled"]["success"],
        "success_faulty": summary["faulty"]["trained"]["sampled"]["success"],
        "processes_left": left,
    }


def start_click_test(output: Path, steps: int, *options: str) -> subprocess.Popen[bytes]:
    """The main job, in a process of its own."""
    command = [sys.executable, str(ROOT / "examples" / "click_test.py"), "--output", str(output)]
    command += ["--steps", str(steps), "--save-every", "1", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    """The processes that one started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(p) for task in tasks for p in (task / "children").read_text().split()]
    except OSError:
        return []  # it ended meanwhile


def descendants(pid: int) -> list[int]:
    """The processes that one started, and those that they started."""
    return [p for child in children(pid) for p in (child, *descendants(child))]


def alive(pids: Iterable[int]) -> list[int]:
    """Of these processes those that run; one that only its parent has yet to note does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one thing and print it as a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "soak", "ranks", "browser"))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="300 for kills, 500 soak, 20 ranks, 7 browser")
    parser.add_argument("--group-size", type=int, default=8, help="of ranks")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args(argv)
    work: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda folder: kills(folder, arguments.kills, arguments.steps or 300),
        "soak": lambda folder: soak(folder, arguments.steps or 500),
        "ranks": lambda folder: ranks(folder, arguments.steps or 20, arguments.group_size),
        "browser": lambda folder: browser(folder, arguments.steps or 7),
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = work[arguments.what](Path(folder))
    result["load"] = os.getloadavg()[0]
    table = Table(title=arguments.what)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in result.items():
        table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    Console(stderr=arguments.json).print(table)
    if arguments.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
