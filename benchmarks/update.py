"""Time and memory of one update: the token tree, padded rows, TRL with PEFT.

Every implementation runs in its own process, on the same model, adapter and rows. They take turns,
so that a slow minute of the machine affects all of them. A step is the forward and the backward
of one batch. The floor is the time of the matrix products that the distinct tokens need
(`floor_operations`) at the matrix rate measured between the steps.

    make benchmark-update                 # 20 minutes on two cores
    make benchmark-update ARGS=--sweep    # the cost by group size and prompt length
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.worker import ROOT, Worker, WorkerEnded
from grpo.model.bundled import bundled_model_path
from tests.support.workloads import Workload

REFERENCE = ROOT / ".venv-reference" / "bin" / "python"
BUDGET = 4096  # distinct tokens per forward: the configuration's default
MULTI_TURN = Workload(groups=2, pages=(1, 2, 2))
console = Console(stderr=True)


class Implementation(Worker):
    """One implementation of the update; see `benchmarks.update_worker`."""

    def __init__(self, name: str, arguments: argparse.Namespace, folder: str, *flags: str) -> None:
        reference = name == "trl" and not find_spec("trl")
        python = str(REFERENCE) if reference else sys.executable
        command = [python, "-m", "benchmarks.update_worker", name]
        command += ["--model", arguments.model, "--adapter", f"{folder}/adapter"]
        command += ["--device", arguments.device, *flags]
        super().__init__(name, command, Path(folder, f"{name}.log"))

    def step(self, workload: Workload, rows: int, gradients: str = "") -> dict[str, Any]:
        """Measure a step of `rows` rows (for the tree: tokens) at a time; save its gradients."""
        return self.ask(do="step", workload=asdict(workload), rows=rows, gradients=gradients)


def search(arguments: argparse.Namespace, folder: str) -> dict[int, dict[str, Any]]:
    """Measure half of TRL's step for each micro-batch size that fits, each in a fresh process."""
    found = {}
    for size in arguments.rows:
        try:
            worker = Implementation("trl", arguments, folder)
            found[size] = worker.step(Workload(groups=2), size)
            worker.close()
            seconds, peak = found[size]["seconds"], found[size]["peak"] / 1e9
            console.print(
                f"trl, {size} rows at a time: {seconds:.1f} s, {peak:.2f} GB for half a step"
            )
        except WorkerEnded as error:
            console.print(f"trl, {size} rows do not fit: {str(error).splitlines()[0]}")
    return found


def compare(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure every implementation on the workload, in turn, `rounds` times."""
    Implementation("tree", arguments, folder).close()  # writes the adapter
    variants: dict[str, tuple[str, int, tuple[str, ...]]] = {
        "tree": ("tree", BUDGET, ()),
        "tree, micro-batches": ("tree", 512, ()),
        "tree, checkpointed": ("tree", 512, ("--checkpointing",)),
        "tree, bfloat16": ("tree", BUDGET, ("--dtype", "bfloat16")),
        "padded": ("padded", 4, ()),
    }
    halves = {} if arguments.no_trl else search(arguments, folder)
    if halves:
        fastest = min(halves, key=lambda size: halves[size]["seconds"])
        variants["trl"] = ("trl", fastest, ())
        variants["trl, bfloat16"] = ("trl", fastest, ("--dtype", "bfloat16"))
    workers = {
        name: Implementation(kind, arguments, folder, *flags)
        for name, (kind, _, flags) in variants.items()
    }
    steps: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number in range(arguments.rounds + 1):  # round 0 warms up the fast ones
        for name, (kind, rows, _) in variants.items():
            fast = kind == "tree"
            for _ in range(2 if fast else min(number, 1)):
                rate = workers[name].ask(do="rate")["rate"]
                response = workers[name].step(Workload(), rows, f"{folder}/{name}.pt")
                if number:
                    floor = response["operations"] / rate
                    response |= {"rate": rate, "floors": response["seconds"] / floor}
                    steps[name].append(response)
        latest = {name: round(some[-1]["seconds"], 2) for name, some in steps.items()}
        console.print(f"round {number}, load {os.getloadavg()[0]:.1f}: {latest}")
    for worker in workers.values():
        worker.close()

    medians = {
        name: {key: median(s[key] for s in some) for key in ("seconds", "rate", "floors")}
        for name, some in steps.items()
    }
    peaks = {name: max(s["peak"] for s in some) for name, some in steps.items()}
    gradients = {name: torch.load(f"{folder}/{name}.pt") for name in variants}
    difference = {name: distance(g, gradients["tree"]) for name, g in gradients.items()}
    any_step = steps["tree"][0]
    table = Table(title=f"4 groups of 8 rows, 317-token prompts: {any_step['distinct']} distinct "
                        f"of {any_step['tokens']} padded tokens")  # fmt: skip
    for heading in ("update", "at a time", "seconds", "ratio", "peak GB", "x floor", "gradient"):
        table.add_column(heading, justify="right")
    for name, (kind, rows, _) in variants.items():
        seconds = medians[name]["seconds"]
        table.add_row(
            name,
            f"{rows} {'tokens' if kind == 'tree' else 'rows'}",
            f"{seconds:.2f}",
            f"{seconds / medians['tree']['seconds']:.2f}",
            f"{peaks[name] / 1e9:.2f}",
            f"{medians[name]['floors']:.2f}",
            f"{difference[name]:.1e}",
        )
    Console().print(table)
    exact = [name for name, (_, _, flags) in variants.items() if "bfloat16" not in flags]
    result = {
        "time_ratio_padded": medians["padded"]["seconds"] / medians["tree"]["seconds"],
        "floor_ratio": medians["tree"]["floors"],
        "floor_ratio_bfloat16": medians["tree, bfloat16"]["floors"],
        "gradient_difference": max(difference[name] for name in exact),
        "medians": medians,
        "peak_bytes": peaks,
        "trl_half_steps": halves,
    }
    if "trl" in variants:
        result["time_ratio_trl"] = medians["trl"]["seconds"] / medians["tree"]["seconds"]
        result["memory_ratio_trl"] = peaks["trl"] / peaks["tree"]
        in_bfloat16 = medians["trl, bfloat16"]["seconds"] / medians["tree, bfloat16"]["seconds"]
        result["time_ratio_trl_bfloat16"] = in_bfloat16
    return result


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return `|one - other| / |other|` over all parameters."""
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:4]
    difference = sum(float((one[n] - other[n]).double().square().sum()) for n in other)
    return math.sqrt(difference / sum(float(g.double().square().sum()) for g in other.values()))


def sweep(arguments: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure the cost by group size and prompt length, and of several turns."""
    cases = [("group size", g, Workload(group_size=g, completion=8)) for g in (2, 4, 8, 16, 32)]
    cases += [
        ("prompt", p, Workload(groups=1, prompt=p, shared_prefix=p // 2))
        for p in (100, 317, 1000, 2000)
    ]
    cases += [("turns", 3, MULTI_TURN)]
    workers = {name: Implementation(name, arguments, folder) for name in ("tree", "padded")}
    workers["tree"].step(Workload(), BUDGET)
    table = Table("over", "value", "distinct", "padded", "tree s", "padded s", "ratio")
    points = []
    for over, value, workload in cases:
        tree = [workers["tree"].step(workload, BUDGET) for _ in range(3)]
        point: dict[str, Any] = {"over": over, "value": value}
        point |= {name: tree[0][name] for name in ("distinct", "tokens")}
        point["tree"] = median(t["seconds"] for t in tree)
        if point["tokens"] <= arguments.most_padded:
            rows = max(1, 1300 // workload.prompt)  # fast at 317 tokens and fits in memory at 2000
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
    """Plot seconds per update by group size and prompt length."""
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
        axis.set(title=title, xlabel=over, ylabel="seconds per update", xscale="log", yscale="log")
        ticks = [p["value"] for p in points if p["over"] == over]
        axis.set_xticks(ticks, [str(t) for t in ticks], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="model folder (default: the bundled model)")
    parser.add_argument("--device", default="cpu", help="device: cpu or cuda")
    parser.add_argument(
        "--rounds", type=int, default=2, help="measured rounds of all implementations"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16],
                        help="sizes of TRL's micro-batches to try")  # fmt: skip
    parser.add_argument("--no-trl", action="store_true", help="leave TRL with PEFT out")
    parser.add_argument(
        "--sweep", action="store_true", help="measure by group size and prompt length instead"
    )
    parser.add_argument("--most-padded", type=int, default=16_500, metavar="TOKENS",
                        help="sweep: skip padded rows above this number of tokens")  # fmt: skip
    parser.add_argument("--plot", type=Path, help="sweep: write a plot to this PNG file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    arguments.model = str(Path(arguments.model or bundled_model_path()).resolve())
    if not (arguments.no_trl or arguments.sweep or REFERENCE.exists() or find_spec("trl")):
        parser.error("TRL is missing: run python3 scripts/setup.py --reference, or pass --no-trl")
    with tempfile.TemporaryDirectory() as folder:
        result = (sweep if arguments.sweep else compare)(arguments, folder)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
