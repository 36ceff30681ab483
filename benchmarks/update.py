"""Time and memory of one update: the token tree, padded rows, TRL with PEFT.

Every implementation runs in a process of its own, on the same model, adapter and rows, and
takes its turns with the others, so that a slow minute of the machine meets them all. A step
is the forward and the backward of one batch. The floor is the time of the products that the
distinct tokens need (`floor_operations`) at the matrix rate measured in between.

    make benchmark-update                 # the table, 20 minutes on two cores
    make benchmark-update ARGS=--sweep    # the cost over group size and prompt length
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from grpo.model.bundled import bundled_model_path
from tests.support.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent

REFERENCE = ROOT / ".venv-reference" / "bin" / "python"
BUDGET = 4096  # distinct tokens of one forward: the configuration's default
MULTI_TURN = Workload(groups=2, pages=(1, 2, 2))
console = Console(stderr=True)


class Gone(Exception):
    """The process ended, as it does when memory runs out."""


class Worker:
    """One implementation in its own process."""

    def __init__(self, name: str, arguments: argparse.Namespace, folder: str, *flags: str) -> None:
        self.name = name
        python = str(REFERENCE) if name == "trl" else sys.executable
        command = [python, str(ROOT / "benchmarks" / "update_worker.py"), name]
        command += ["--model", arguments.model, "--adapter", f"{folder}/adapter"]
        command += ["--device", arguments.device, *flags]
        self.log = Path(folder, f"{name}.log")
        # Bound OpenMP threads leave their process one core, and what it starts inherits that.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace")[-1000:]
            raise Gone(f"{self.name} ended with {self.process.wait()}; its last words:\n{tail}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def step(self, workload: Workload, rows: int, gradients: str = "") -> dict[str, Any]:
        return self.ask(do="step", workload=asdict(workload), rows=rows, gradients=gradients)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def search(arguments: argparse.Namespace, folder: str) -> dict[int, dict[str, Any]]:
    """Half a step of TRL's for each micro-batch size, in a fresh process each; what fits."""
    found = {}
    for size in arguments.rows:
        try:
            worker = Worker("trl", arguments, folder)
            found[size] = worker.step(Workload(groups=2), size)
            worker.close()
            seconds, peak = found[size]["seconds"], found[size]["peak"] / 1e9
            console.print(f"trl, {size} rows at a time: {seconds:.1f} s and {peak:.2f} GB for half")
        except Gone as end:
            console.print(f"trl, {size} rows do not fit: {str(end).splitlines()[0]}")
    return found


def compare(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """All implementations on the workload, `rounds` times in turn."""
    Worker("tree", arguments, folder).close()  # writes the adapter
    variants: dict[str, tuple[str, int, tuple[str, ...]]] = {
        "tree": ("tree", BUDGET, ()),
        "tree in parts": ("tree", 512, ()),
        "in parts, checkpointed": ("tree", 512, ("--checkpointing",)),
        "tree, bfloat16": ("tree", BUDGET, ("--dtype", "bfloat16")),
        "padded": ("padded", 4, ()),
    }
    halves = {} if arguments.no_trl else search(arguments, folder)
    if halves:
        fastest = min(halves, key=lambda size: halves[size]["seconds"])
        variants["trl"] = ("trl", fastest, ())
    workers = {
        name: Worker(kind, arguments, folder, *flags) for name, (kind, _, flags) in variants.items()
    }
    steps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(arguments.rounds + 1):  # the first one only warms up what is quick
        for name, (kind, rows, _) in variants.items():
            quick = kind == "tree"
            for _ in range(2 if quick else min(number, 1)):
                rate = workers[name].ask(do="rate")["rate"]
                answer = workers[name].step(Workload(), rows, f"{folder}/{name}.pt")
                if number:
                    floor = answer["operations"] / rate
                    answer |= {"rate": rate, "floors": answer["seconds"] / floor}
                    steps[name].append(answer)
        latest = {name: round(answers[-1]["seconds"], 2) for name, answers in steps.items()}
        console.print(f"round {number}, load {os.getloadavg()[0]:.1f}: {latest}")
    for worker in workers.values():
        worker.close()

    middle = {
        name: {key: median(s[key] for s in answers) for key in ("seconds", "rate", "floors")}
        for name, answers in steps.items()
    }
    peaks = {name: max(s["peak"] for s in answers) for name, answers in steps.items()}
    gradients = {name: torch.load(f"{folder}/{name}.pt") for name in variants}
    difference = {name: distance(g, gradients["tree"]) for name, g in gradients.items()}
    any_step = steps["tree"][0]
    table = Table(title=f"4 groups of 8 rows, 317-token prompts: {any_step['distinct']} distinct "
                        f"of {any_step['tokens']} padded tokens")  # fmt: skip
    for heading in ("update", "at a time", "seconds", "ratio", "peak GB", "x floor", "gradient"):
        table.add_column(heading, justify="right")
    for name, (kind, rows, _) in variants.items():
        seconds = middle[name]["seconds"]
        table.add_row(
            name,
            f"{rows} {'tokens' if kind == 'tree' else 'rows'}",
            f"{seconds:.2f}",
            f"{seconds / middle['tree']['seconds']:.2f}",
            f"{peaks[name] / 1e9:.2f}",
            f"{middle[name]['floors']:.2f}",
            f"{difference[name]:.1e}",
        )
    Console().print(table)
    exact = [name for name, (_, _, flags) in variants.items() if "bfloat16" not in flags]
    result = {
        "time_ratio_padded": middle["padded"]["seconds"] / middle["tree"]["seconds"],
        "floor_ratio": middle["tree"]["floors"],
        "floor_ratio_bfloat16": middle["tree, bfloat16"]["floors"],
        "gradient_difference": max(difference[name] for name in exact),
        "medians": middle,
        "peak_bytes": peaks,
        "trl_half_steps": halves,
    }
    if "trl" in variants:
        result["time_ratio_trl"] = middle["trl"]["seconds"] / middle["tree"]["seconds"]
        result["memory_ratio_trl"] = peaks["trl"] / peaks["tree"]
    return result


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """|one - other| / |other| over all parameters."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:4]
    squares = sum(float((one[n] - other[n]).double().square().sum()) for n in other)
    return (squares / sum(float(g.double().square().sum()) for g in other.values())) ** 0.5


def sweep(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """The cost over the group size and the prompt length, and of several turns."""
    cases = [("group size", g, Workload(group_size=g, completion=8)) for g in (2, 4, 8, 16, 32)]
    cases += [
        ("prompt", p, Workload(groups=1, prompt=p, prefix=p // 2)) for p in (100, 317, 1000, 2000)
    ]
    cases += [("turns", 3, MULTI_TURN)]
    workers = {name: Worker(name, arguments, folder) for name in ("tree", "padded")}
    workers["tree"].step(Workload(), BUDGET)
    table = Table("over", "value", "distinct", "padded", "tree s", "padded s", "ratio")
    points = []
    for over, value, workload in cases:
        tree = [workers["tree"].step(workload, BUDGET) for _ in range(3)]
        point = {"over": over, "value": value}
        point |= {name: tree[0][name] for name in ("distinct", "tokens")}
        point["tree"] = median(t["seconds"] for t in tree)
        if point["tokens"] <= arguments.most_padded:
            rows = max(1, 1300 // workload.prompt)  # what is fast at 317 tokens, and fits at 2000
            point["padded"] = workers["padded"].step(workload, rows)["seconds"]
        points.append(point)
        padded = point.get("padded")
        table.add_row(over, str(value), str(point["distinct"]), str(point["tokens"]),
                      f"{point['tree']:.2f}", f"{padded:.1f}" if padded else "-",
                      f"{padded / point['tree']:.1f}" if padded else "-")  # fmt: skip
        console.print(point)
    for worker in workers.values():
        worker.close()
    Console().print(table)
    if arguments.plot:
        plot(points, arguments.plot)
    groups = [p["tree"] for p in points if p["over"] == "group size"]
    return {
        "doubling_group_size": [b / a for a, b in pairwise(groups)],
        "time_ratio_padded_multi_turn": points[-1]["padded"] / points[-1]["tree"],
        "points": points,
    }


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw seconds a step over the group size and the prompt length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    titles = {"group size": "4 groups, 317-token prompts", "prompt": "1 group of 8"}
    for axis, (over, title) in zip(axes, titles.items(), strict=True):
        for name, colour in (("padded", "tab:grey"), ("tree", "tab:blue")):
            some = [p for p in points if p["over"] == over and name in p]
            xs, ys = [p["value"] for p in some], [p[name] for p in some]
            axis.plot(xs, ys, "o-", color=colour, label=name)
        axis.set(title=title, xlabel=over, ylabel="seconds an update", xscale="log", yscale="log")
        ticks = [p["value"] for p in points if p["over"] == over]
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="a folder (default: the bundled model)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=2, help="each implementation's turns")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16],
                        help="TRL's micro-batches to try")  # fmt: skip
    parser.add_argument("--no-trl", action="store_true", help="leave TRL and PEFT out")
    parser.add_argument("--sweep", action="store_true", help="over group sizes and prompts")
    parser.add_argument("--most-padded", type=int, default=16_500, metavar="TOKENS",
                        help="of the sweep: no padded rows above this many tokens")  # fmt: skip
    parser.add_argument("--plot", type=Path, help="of the sweep: write it to this PNG")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    arguments.model = arguments.model or str(bundled_model_path())
    if not (arguments.no_trl or arguments.sweep or REFERENCE.exists()):
        parser.error("TRL is not there: python3 scripts/setup.py --reference, or --no-trl")
    with tempfile.TemporaryDirectory() as folder:
        result = (sweep if arguments.sweep else compare)(arguments, folder)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
