"""Seconds of one GRPO step from end to end, with browsers: this project's, and TRL's.

Same model, task, seeds, group sizes, LoRA modules and prompts. TRL's GRPOTrainer trains PEFT's
LoRA, and its `rollout_func` plays stock BrowserGym with BrowserGym's defaults: one environment as
in its own examples, and several at once. Every implementation is a process of its own, and they
take turns. The learning rate is next to zero, so that every step does the same work.

A floor is what the machine needs at the rates that are measured beside the step: for the update the
products of the distinct tokens, for the rollouts those of the distinct prompt tokens, and the bytes
of the weights for every decoding step.

    make benchmark-step                  # an hour on two cores, most of it TRL's
    make benchmark-step ARGS="--no-trl"
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.update import REFERENCE
from benchmarks.worker import ROOT, Worker
from grpo.model.bundled import bundled_model_path
from grpo.model.device import choose_dtype

console = Console(stderr=True)

HAS_BFLOAT16 = choose_dtype("auto", "cpu") == torch.bfloat16
DTYPES = ("float32", "bfloat16") if HAS_BFLOAT16 else ("float32",)
"""Of this project's steps: bfloat16 where the CPU has instructions for it."""

PHASES = ("rollout", "update")


def start(name: str, words: Sequence[str], arguments: argparse.Namespace, folder: str) -> Worker:
    """Start the worker of an implementation."""
    is_trl = words[0] == "trl"
    python = str(REFERENCE) if is_trl and not find_spec("trl") else sys.executable
    output = Path(folder, name.replace(" ", "-").replace(",", ""))
    output.mkdir()
    command = [python, "-m", "benchmarks.step_worker", *words, "--model", arguments.model]
    command += ["--task", arguments.task, "--output", str(output), "--groups"]
    command += [str(arguments.groups), "--group-size", str(arguments.group_size)]
    return Worker(name, command, Path(folder, f"{output.name}.log"))


def measure(arguments: argparse.Namespace, folder: str) -> dict[str, list[dict[str, Any]]]:
    """Let every implementation do a step in turn, `rounds` times after one to warm up."""
    variants: dict[str, tuple[str, ...]] = {
        f"this project, {dtype}": ("ours", "--dtype", dtype) for dtype in DTYPES
    }
    if not arguments.no_trl:
        rows = ("--rows", str(arguments.rows))
        for envs in (1, arguments.envs):
            variants[f"TRL, {envs} BrowserGym"] = ("trl", "--envs", str(envs), *rows)
    workers = {name: start(name, words, arguments, folder) for name, words in variants.items()}
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(arguments.rounds + 1):
        for name, worker in workers.items():
            found = worker.ask() | {"load": os.getloadavg()[0]}
            console.print(f"{name}: {found['seconds']:.1f} s, load {found['load']:.1f}")
            if number:
                steps[name].append(found)
    for worker in workers.values():
        worker.close()
    return steps


def summarize(steps: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Print the table, and return the ratios."""
    medians = {
        name: {key: median(step[key] for step in some) for key in some[0]}
        for name, some in steps.items()
    }
    ours = [name for name in medians if name.startswith("this")]
    theirs = [name for name in medians if name not in ours]
    first, fast = medians[ours[0]], medians[ours[-1]]
    table = Table(title=f"one step of {first['episodes']:.0f} episodes")
    for heading in ("", "seconds", "rollout", "update", "CPU s", "peak GB", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, found in medians.items():
        table.add_row(
            name,
            *(f"{found[key]:.1f}" for key in ("seconds", *PHASES, "cpu_seconds")),
            f"{found['peak'] / 1e9:.1f}",
            f"{found['seconds'] / first['seconds']:.1f}",
        )
    Console().print(table)
    result: dict[str, Any] = {
        "generate_floor_ratio": fast["generate"] / fast["generate_floor"],
        "update_floor_ratio": first["update"] / first["update_floor"],
        "episodes_executed_share": first["executed"] / first["episodes"],
        "medians": medians,
    }
    ratios = dict(zip(("step_ratio_trl", "step_ratio_trl_parallel"), theirs, strict=False))
    for key, name in ratios.items():
        result[key] = medians[name]["seconds"] / first["seconds"]
    if fast is not first:
        result["update_floor_ratio_bfloat16"] = fast["update"] / fast["update_floor"]
        for key, name in ratios.items():
            result[f"{key}_bfloat16"] = medians[name]["seconds"] / fast["seconds"]
    return result


def plot(medians: dict[str, dict[str, float]], path: Path) -> None:
    """Draw where the time of a step goes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(medians)[::-1]
    figure, axis = pyplot.subplots(figsize=(9, 0.6 * len(names) + 1.2), layout="constrained")
    left = [0.0] * len(names)
    for phase, colour in zip(PHASES, ("tab:blue", "tab:orange"), strict=True):
        widths = [medians[name][phase] for name in names]
        axis.barh(names, widths, left=left, color=colour, label=phase)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for position, seconds in enumerate(left):
        axis.annotate(f" {seconds:.1f} s", (seconds, position), va="center", annotation_clip=False)
    axis.set(xlabel="seconds per step")
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="model folder (default: the bundled model)")
    parser.add_argument("--task", default="click-test", help="task of MiniWoB")
    parser.add_argument("--groups", type=int, default=4, help="groups per step")
    parser.add_argument("--group-size", type=int, default=8, help="episodes per group")
    parser.add_argument("--rounds", type=int, default=2, help="measured steps of each")
    parser.add_argument("--rows", type=int, default=2, help="TRL's rows per micro-batch")
    parser.add_argument("--envs", type=int, default=4, help="TRL's environments in its second run")
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    parser.add_argument("--plot", type=Path, help="draw the phases to this PNG file")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    arguments.model = str(Path(arguments.model or bundled_model_path()).resolve())
    if not (arguments.no_trl or REFERENCE.exists() or find_spec("trl")):
        parser.error("TRL is missing: run python3 scripts/setup.py --reference, or pass --no-trl")
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        result = summarize(measure(arguments, folder))
    if arguments.plot:
        plot(result["medians"], arguments.plot)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
