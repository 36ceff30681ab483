"""Whole runs: kills and resumes, memory, several ranks, faults in the browser, shared episodes.

    python -m benchmarks.runs kills    # 200 kills, each run resumed: is its end the same?
    python -m benchmarks.runs soak     # 500 steps: do memory or open files grow?
    python -m benchmarks.runs ranks    # 2 ranks beside 1 with twice the groups: same? how fast?
    python -m benchmarks.runs browser  # click-test, alone and while every process is killed in turn
    python -m benchmarks.runs sharing  # 20 tasks with shared episodes and without: the same?

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
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.kills import PARTS, kills
from benchmarks.kills import table as rows_table
from benchmarks.run_files import differences
from grpo.config import Config
from grpo.distributed import World
from grpo.reporting.loggers import read_metrics
from tests.support.processes import alive, children, chromiums, descendants
from tests.support.scripted import SETTINGS, run

ROOT = Path(__file__).resolve().parent.parent

SHARED_TASKS = (
    *("click-test", "click-test-2", "click-test-transfer", "click-button", "click-link"),
    *("click-tab", "click-dialog", "click-dialog-2", "click-color", "focus-text", "focus-text-2"),
    *("unicode-test", "identify-shape", "email-inbox-delete", "email-inbox-important"),
    *("click-button-sequence", "click-option", "click-collapsible", "enter-text", "login-user"),
)
"""Deterministic tasks; the last five take several actions."""


def soak(folder: Path, steps: int) -> dict[str, Any]:
    """Run many steps; compare memory and open files at the end with those after a fifth of them."""
    measured: dict[int, tuple[int, int]] = {}

    def measure(step: int) -> None:
        if step in (steps // 5, steps):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            measured[step] = pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))

    config = Config(**SETTINGS, output=str(folder / "soak"), steps=steps)
    asyncio.run(run(config, World.single(), on_step=measure))
    (memory, files), (memory_end, files_end) = measured[steps // 5], measured[steps]
    return {
        "steps": steps,
        "mb": memory_end / 2**20,
        "mb_grown": (memory_end - memory) / 2**20,
        "files": files_end,
        "files_grown": files_end - files,
    }


def ranks(folder: Path, steps: int, group_size: int) -> dict[str, Any]:
    """Compare two ranks of two groups with one rank of four; each rank has one thread."""
    seconds, gradients, losses = {}, {}, {}
    for size in (1, 2):
        output = folder / f"ranks-{size}"
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
        command = [
            *(sys.executable, *torchrun, "-m", "tests.support.scripted"),
            *("--output", str(output), "--steps", str(steps), "--group-size", str(group_size)),
            *("--groups-per-step", str(4 // size), "--env-sessions", str(4 * group_size)),
            *("--valid-action-bonus", "0.5"),  # gives every group a gradient from the start
            *("--seed", "1"),  # with 0 one gradient is rounding alone, which AdamW scales up
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"torchrun with {size} ranks failed:\n{run.stderr}")
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
        "seconds_per_step_1": seconds[1],
        "seconds_per_step_2": seconds[2],
        "speed_up": seconds[1] / seconds[2],
    }


def browser(folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Train on click-test undisturbed, then while browser, server and run are killed in turn.

    Killing the run also kills the generator, which runs in its process; the run is resumed. In
    bfloat16 a sampled token depends on which other requests are in its batch, so the two runs
    reach the same success rate, not bitwise equal adapters.
    """
    runs = {name: folder / name for name in ("plain", "faulty")}
    assert start_click_test(runs["plain"], steps).wait() == 0
    process = start_click_test(runs["faulty"], steps)
    moments, done, left = random.Random(seed), Counter[str](), 0
    faults = cycle(("kill-browser", "kill-server", "kill-browser", "kill-run"))
    seen: set[int] = set()
    while process.poll() is None:
        time.sleep(moments.uniform(3, 7))
        seen |= (family := set(descendants(process.pid)))
        trains = len(read_metrics(runs["faulty"] / "metrics.jsonl")) > done["kill-run"]
        if not trains or not family or (runs["faulty"] / "adapter").exists():
            continue  # faults come only in training: a killed evaluation starts over
        fault = next(faults)
        victims = {"kill-run": [process.pid], "kill-server": children(process.pid)}
        victim = moments.choice(victims.get(fault) or chromiums(sorted(family)))
        os.kill(victim, signal.SIGKILL)
        done[fault] += 1
        if fault == "kill-run":
            process.wait()
            time.sleep(15)  # the server needs this long to notice that its parent is gone
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


def sharing(folder: Path, steps: int, names: str) -> dict[str, Any]:
    """Train in float32 with shared episodes and without, with sampled and greedy evaluations.

    Adapters, optimizer states, rewards, advantages and evaluations must be bitwise equal. Rounding
    changes one sampled token in 50,000 (see `draw_tokens`): of ten comparisons about one fails.
    """
    count, group_size = names.count(",") + 1, 4
    seconds = {}
    for share in (True, False):
        output = folder / ("shared" if share else "alone")
        command = [
            *(sys.executable, "-m", "grpo", "train", "--task", names, "--dtype", "float32"),
            *("--share-episodes" if share else "--no-share-episodes", "--steps", str(steps)),
            *("--groups-per-step", str(count), "--group-size", str(group_size)),
            *("--max-turns", "3", "--max-new-tokens", "16", "--learning-rate", "3e-4"),
            *("--save-every", "1", "--eval-episodes", "1", "--no-blind", "--output", str(output)),
        ]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        seconds[share] = time.perf_counter() - began
    shared, alone = (read_metrics(folder / name / "metrics.jsonl") for name in ("shared", "alone"))
    return {
        "tasks": count,
        "steps": len(shared),
        "episodes": len(shared) * count * group_size,
        "episodes_executed": shared[-1]["env/episodes_executed"],
        "replay_mismatches": shared[-1]["env/replay_mismatches"],
        "reward": statistics.fmean(line["reward"] for line in alone),
        "updates_skipped": sum(line.get("update/skipped", 0.0) for line in alone),
        "different": differences(folder / "shared", folder / "alone", rounding=1e-4),
        "seconds_shared": seconds[True],
        "seconds_alone": seconds[False],
    }


def start_click_test(output: Path, steps: int, *options: str) -> subprocess.Popen[bytes]:
    """Start the main job in its own process."""
    command = [sys.executable, str(ROOT / "examples" / "click_test.py"), "--output", str(output)]
    command += ["--steps", str(steps), "--save-every", "1", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=("kills", "soak", "ranks", "browser", "sharing"))
    parser.add_argument("--kills", type=int, default=200, help="kills: how many")
    parser.add_argument("--part", default="", choices=("", *PARTS), help="kills: all in this part")
    steps_help = "training steps (kills 300, soak 500, ranks 20, browser 7, sharing 2)"
    parser.add_argument("--steps", type=int, help=steps_help)
    parser.add_argument("--group-size", type=int, default=8, help="ranks: episodes per group")
    parser.add_argument("--tasks", default=",".join(SHARED_TASKS), help="sharing: on which tasks")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args(argv)
    steps = arguments.steps
    benchmarks: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda folder: kills(folder, arguments.kills, steps or 300, arguments.part),
        "soak": lambda folder: soak(folder, steps or 500),
        "ranks": lambda folder: ranks(folder, steps or 20, arguments.group_size),
        "browser": lambda folder: browser(folder, steps or 7),
        "sharing": lambda folder: sharing(folder, steps or 2, arguments.tasks),
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = benchmarks[arguments.benchmark](Path(folder))
    result["load"] = os.getloadavg()[0]
    console = Console(stderr=arguments.json)
    if "rows" in result:
        console.print(rows_table(result["rows"]))
    table = Table(title=arguments.benchmark)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in result.items():
        if name != "rows":
            table.add_row(name, f"{value:.3g}" if isinstance(value, float) else str(value))
    console.print(table)
    if arguments.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
