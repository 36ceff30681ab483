"""Runs that are killed and resumed until they are done, held against undisturbed ones, bit by bit.

A row of the table is a run of one configuration that is killed in one part of it, at several points
(see `benchmarks.kill_points`). Its folder must end as that of a run without kills: the same files
with the same content, but for times, ids and the run's own options.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.kill_points import Point, play
from benchmarks.run_files import differences
from grpo.config import Config
from grpo.distributed import World
from grpo.files import EARLIER, run_id
from grpo.reporting.loggers import read_metrics
from grpo.training.checkpoint import checkpoints
from tests.support.models import make_llama, make_tokenizer
from tests.support.scripted import SETTINGS, run

ROOT = Path(__file__).resolve().parent.parent

COMMON: dict[str, Any] = SETTINGS | {
    "max_turns": 2, "valid_action_bonus": 0.5, "learning_rate": 0.03, "eval_episodes": 2,
    "steps": 4, "save_every": 1, "device": "cpu", "push_to_hub": "user/killed",
}  # fmt: skip
WARM: dict[str, Any] = {"warm_start_steps": 2}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "full, save_every 2": {"train": "full", "save_every": 2},
    "warm start": WARM,
    "max_staleness 1": {"max_staleness": 1},
    "updates_per_batch 2": {"updates_per_batch": 2, "save_every": 2},
    "keep_checkpoints 1": {"keep_checkpoints": 1},
    "save_every 0, learnability": {"save_every": 0, "task_sampler": "learnability"},
}
CUT = "cut write"
"""A kill in the middle of a write, in any part of the run. The other parts are kinds of points."""

WARM_START = "warm start"
"""A part of the configuration of this name; every other one gets a warm start for it."""

PARTS = ("save", "start", "evaluation", "training", "results", "upload", CUT, WARM_START)
EVERY = "every part"

LATE = ("matplotlib.backends.backend_agg", "matplotlib.figure", "torch.utils.tensorboard")
"""What a run imports when it needs it: once here, or again in every fork."""


@dataclass
class Row:
    """A run that was killed in one part.

    Attributes:
        configuration: its name.
        part: where it was killed.
        kills: how often.
        resumed: how often it went on from a checkpoint.
        different: files that are not as those of the undisturbed run, or how an attempt failed.
    """

    configuration: str
    part: str
    kills: int = 0
    resumed: int = 0
    different: list[str] = field(default_factory=list)


def kills(folder: Path, count: int, steps: int, part: str = "") -> dict[str, Any]:
    """Kill runs, resume them, and compare them with undisturbed ones.

    Args:
        folder: where to keep the runs.
        count: number of kills. A quarter is at random moments, the rest at points of every part
            of a run: fewer than 50 in a single run, otherwise over all configurations, with one
            in 25 in one of two ranks.
        steps: of the run that is killed at random moments.
        part: where all kills are, over all configurations; empty for every part.
    """
    torch.set_num_threads(1)
    for name in LATE:
        importlib.import_module(name)
    model = folder / "model"
    make_llama().save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    bench = _Bench(folder, Config(**COMMON, model=str(model)))
    if part:
        rows = _at_all_points(bench, [pair for pair in plan() if pair[1] == part], count)
    elif count < 50:
        rows = [bench.at_random(count // 4, steps)]
        rows.append(bench.at_points(WARM_START, EVERY, count - count // 4))
    else:
        of_ranks = count // 25
        rows = [bench.at_random(count // 4, steps)]
        rows += _at_all_points(bench, plan(), count - count // 4 - of_ranks)
        rows += [bench.of_ranks(rank, (of_ranks + 1 - rank) // 2) for rank in (0, 1)]
    wrong = [name for row in rows for name in row.different]
    return {
        "kills": sum(row.kills for row in rows),
        "resumed": sum(row.resumed for row in rows),
        "equal": not wrong,
        "adapter_equal": not any("adapter/" in name or "model/" in name for name in wrong),
        "metrics_equal": not any("metrics.jsonl" in name for name in wrong),
        "rows": [asdict(row) for row in rows],
    }


def _at_all_points(bench: _Bench, pairs: Sequence[tuple[str, str]], count: int) -> list[Row]:
    """Divide the kills among pairs of a configuration and a part."""
    numbers = Counter(pairs[i % len(pairs)] for i in range(count))
    return [bench.at_points(name, part, number) for (name, part), number in numbers.items()]


def plan() -> list[tuple[str, str]]:
    """Return the pairs of a configuration and a part of a run."""
    return [(name, part) for part in PARTS for name in CONFIGURATIONS]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out the rows of `kills`."""
    layout = Table("configuration", "killed in", title="kills")
    for name in ("kills", "resumed", "equal"):
        layout.add_column(name, justify="right")
    for row in rows:
        equal = "no: " + ", ".join(row["different"][:3]) if row["different"] else "yes"
        shown = row["configuration"], row["part"], str(row["kills"]), str(row["resumed"])
        layout.add_row(*shown, equal)
    return layout


class _Bench:
    """Makes the rows, each with the same random numbers whatever the others are."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config

    def at_random(self, count: int, steps: int) -> Row:
        """Kill a run of many steps, without evaluations, at random moments.

        Every third moment is counted from the start of the process, the others from its first
        step. It is within the time that the share of an attempt took undisturbed.
        """
        row, moments = Row(f"LoRA, {steps} steps", "random moment"), random.Random(0)
        whole = Config(**SETTINGS, output=self._output("whole"), steps=steps, save_every=3)
        killed = whole.replace(output=self._output("killed"), resume=True)
        times: list[float] = []

        def play_steps(config: Config, after: float = 0.0, *, at_step: bool = True) -> None:
            """Train; the kernel's alarm, which nothing handles, is as SIGKILL."""

            def on_step(step: int) -> None:
                times.append(time.monotonic())
                if len(times) == 1 and at_step:
                    signal.setitimer(signal.ITIMER_REAL, after)

            if not at_step:
                signal.setitimer(signal.ITIMER_REAL, after)
            asyncio.run(run(config, World.single(), on_step=on_step))

        self._attempt(row, lambda: play_steps(whole))
        lines = read_metrics(whole.folder / "metrics.jsonl")
        length = lines[-1]["time"] - lines[0]["time"]
        for number in range(count):
            row.resumed += bool(checkpoints(killed.folder))
            after, at_step = moments.uniform(0, length / count), number % 3 > 0
            self._attempt(row, lambda: play_steps(killed, after, at_step=at_step))  # noqa: B023
        row.resumed += bool(checkpoints(killed.folder))
        self._attempt(row, lambda: play_steps(killed))
        row.different += differences(whole.folder.parent, killed.folder.parent)
        return row

    def at_points(self, name: str, part: str, count: int) -> Row:
        """Kill a run in one part of it."""
        row, chance = Row(name, part), random.Random(f"{name} {part}")
        settings = CONFIGURATIONS[name] | (WARM if part == WARM_START else {})
        whole = f"{name}, warm" if settings != CONFIGURATIONS[name] else name
        points = self._undisturbed(whole, settings)
        output, old = self._output(f"{name}, {part}"), ""
        config = self.config.replace(**settings, output=output)
        chosen = choose(points, part, count, chance)
        if part == "start":  # in a folder where another run was; later where its own has begun
            other = WARM_START if name != WARM_START else "LoRA"
            self._undisturbed(other, CONFIGURATIONS[other])
            shutil.copytree(self.folder / other / "run", output)
            old = run_id(config.folder)
            if len(chosen) > 2:
                chosen[len(chosen) // 2] = choose(points, "training", 9, chance)[-1]
        for point in [*chosen, None]:
            is_old = run_id(config.folder) == old and bool(checkpoints(config.folder))
            attempt = config.replace(resume=not is_old)
            self._attempt(row, lambda: play(attempt, point))  # noqa: B023, called at once
        row.different += differences(self.folder / whole, config.folder.parent)
        if old:
            moved, kept = config.folder / EARLIER / old, self.folder / other / "run"
            row.different += differences(kept, moved)
        return row

    def of_ranks(self, rank: int, count: int) -> Row:
        """Kill a rank of two, which torchrun has started."""
        row, chance = Row("two ranks (torchrun)", f"rank {rank}"), random.Random(rank)
        settings = {"groups_per_step": 1}
        whole = self.config.replace(**settings, output=self._output("two ranks"))
        if not whole.folder.exists():
            self._torchrun(row, whole)
        points = _read_points(whole.folder, rank)
        killed = whole.replace(output=self._output(f"two ranks, {rank}"), resume=True)
        parts = ["evaluation", "training", "save", "results"] if rank == 0 else ["training"]
        chosen: list[Point] = []
        for i in range(count):  # another step each: the ranks that are left save what they can
            part, step = parts[i % len(parts)], f" {i % whole.steps + 1}"
            has_step = part in ("training", "save")
            among = [point for point in points if point.place.endswith(step) or not has_step]
            chosen += choose(among, part, 1, chance)
        for point in [*sorted(chosen, key=points.index), None]:
            self._torchrun(row, killed, rank, point)
        row.different += differences(whole.folder.parent, killed.folder.parent)
        return row

    def _output(self, name: str) -> str:
        return str(self.folder / name / "run")

    def _undisturbed(self, name: str, settings: dict[str, Any]) -> list[Point]:
        """Play a configuration once; return the points that it passed."""
        config = self.config.replace(**settings, output=self._output(name))
        if not config.folder.exists():
            row = Row(name, "")
            self._attempt(row, lambda: play(config))
            if row.different:
                raise RuntimeError(f"the undisturbed run failed: {row.different[0]}")
        return _read_points(config.folder)

    def _attempt(self, row: Row, program: Callable[[], None]) -> None:
        """Run a program in a fork of this process, where everything is imported already."""
        log = self.folder / "log.txt"
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with log.open("wb", buffering=0) as file:
                    os.dup2(file.fileno(), 1)
                    os.dup2(file.fileno(), 2)
                torch.set_num_threads(1)
                program()
                code = 0
            except BaseException:  # the parent's code must not run on here
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # skips the parent's exit handlers
        _, status = os.waitpid(pid, 0)
        row.kills += os.WIFSIGNALED(status)
        self._read_log(row, failed=os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0)

    def _torchrun(
        self, row: Row, config: Config, rank: int = 0, point: Point | None = None
    ) -> None:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("-m", "benchmarks.kill_points", config.model_dump_json(), str(rank)),
            json.dumps(point),
        ]
        with (self.folder / "log.txt").open("wb") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        killed = b"exitcode  : -9" in (self.folder / "log.txt").read_bytes()
        row.kills += killed
        self._read_log(row, failed=done.returncode != 0 and not killed)

    def _read_log(self, row: Row, *, failed: bool) -> None:
        text = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        row.resumed += "resuming from step" in text
        if failed:
            row.different.append(f"an attempt failed: {text.strip().splitlines()[-1:]}")


def choose(points: Sequence[Point], part: str, count: int, chance: random.Random) -> list[Point]:
    """Choose points of a part of the run, in the order in which a run passes them.

    Each place is as likely as the others, however many points it has.
    """
    if part == EVERY:
        parts = [PARTS[i % len(PARTS)] for i in range(count)]
        chosen = [point for each in parts for point in choose(points, each, 1, chance)]
        return sorted(chosen, key=lambda point: points.index(point._replace(cut=0)))
    places: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in points:
        if part == point.kind or (part == CUT and point.what.startswith("write ")):
            places[point.kind, point.place].append(point)
    chosen = []
    while len(chosen) < count and any(places.values()):
        place = chance.choice([name for name, left in places.items() if left])
        chosen.append(places[place].pop(chance.randrange(len(places[place]))))
    chosen.sort(key=points.index)
    if part == CUT:
        return [point._replace(cut=chance.choice((1, 10, 100, 1000))) for point in chosen]
    return chosen


def _read_points(folder: Path, rank: int = 0) -> list[Point]:
    values = json.loads(folder.with_name(f"points-{rank}.json").read_text(encoding="utf-8"))
    return [Point(*value) for value in values]
