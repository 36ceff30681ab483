"""What a GPU gives: updates, generation, a step, memory and cost, in at most ten minutes.

Every figure comes from a process of its own, one after the other, so nothing else may use the GPU
meanwhile. Updates are on 4 groups of 8 rows with 317-token prompts (see `benchmarks.update`), a
step is 6 prompts x 8 completions of up to 16 tokens, without an environment (see
`benchmarks.model_step`): what browsers add is in `benchmarks.rollouts`. TRL with PEFT and vLLM
are measured where they are installed.

    python -m benchmarks.gpu --price 2.50                 # dollars per hour of the GPU
    python -m benchmarks.gpu --model MODEL_FOLDER --json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.update import BUDGET, Implementation
from benchmarks.worker import WorkerEnded
from grpo.doctor.rates import seconds_per_call
from grpo.model.bundled import bundled_model_path
from grpo.model.device import dtype_name
from tests.support.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
console = Console(stderr=True)

GIB = 1 << 30
STEP = ("--steps", "4", "--prompt", "317", "--max-new-tokens", "16")


def machine() -> dict[str, Any]:
    """Measure the GPU's matrix rate by dtype, its bandwidth and the time of a kernel launch."""
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.randn(4096, 4096, device="cuda", dtype=dtype)
        rate = 2 * 4096**3 / seconds_per_call(partial(torch.matmul, x, x), "cuda")
        result[f"tflops_{dtype_name(dtype)}"] = rate / 1e12
    source = torch.randn(GIB // 4, device="cuda")
    target = torch.empty_like(source)
    copied = seconds_per_call(partial(target.copy_, source), "cuda")
    result["gigabytes_per_second"] = 2 * GIB / copied / 1e9
    small = torch.zeros(8, device="cuda")
    result["launch_microseconds"] = seconds_per_call(partial(small.add_, 1), "cuda") * 1e6
    return result


def updates(arguments: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """Measure the update's implementations in both dtypes."""
    rows = []
    for dtype in ("bfloat16", "float32"):
        flags = ("--dtype", dtype)
        variants: list[tuple[str, str, list[int], tuple[str, ...]]]
        variants = [("tree", "tree", [BUDGET], flags)]
        if dtype == "bfloat16":
            graphs = (*flags, "--no-graphs")
            variants.append(("tree without CUDA graphs", "tree", [BUDGET], graphs))
            variants.append(("padded rows", "padded", [8, 32], flags))
        if find_spec("trl") and find_spec("peft"):
            variants.append(("TRL + PEFT", "trl", [8, 32], flags))
        for name, kind, sizes, options in variants:
            row = {"update": name, "dtype": dtype} | best(kind, sizes, options, arguments, folder)
            rows.append(row)
            console.print(row)
    for row in rows:
        (tree,) = (r for r in rows if r["update"] == "tree" and r["dtype"] == row["dtype"])
        row["ratio"] = row["seconds"] / tree["seconds"]
    return rows


def best(
    kind: str,
    sizes: list[int],
    options: tuple[str, ...],
    arguments: argparse.Namespace,
    folder: str,
) -> dict[str, Any]:
    """Measure an implementation with each size of micro-batch; return the fastest's figures."""
    worker = Implementation(kind, arguments, folder, *options)
    found: dict[str, Any] = {"seconds": float("inf")}
    try:
        for size in sizes:
            steps = [worker.step(Workload(), size) for _ in range(8)][3:]
            seconds = median(step["seconds"] for step in steps)
            if seconds < found["seconds"]:
                peak = max(step["peak"] for step in steps) / 1e9
                found = {"at_a_time": size, "seconds": seconds, "peak_gb": peak}
    except WorkerEnded as error:
        console.print(f"{kind}: {error}")
    worker.close()
    return found


def steps(arguments: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """Measure a step of the bundled model and of LFM2-350M's shape, with and without graphs."""
    config = Path(folder, "step.yaml")
    config.write_text("groups_per_step: 6\ngroup_size: 8\n")
    rows = []
    shapes = {"bundled model": ["--model", arguments.model], "LFM2-350M's shape": []}
    for name, model in shapes.items():
        for graphs in ("true", "false"):
            command = [sys.executable, "-m", "benchmarks.model_step", "--here", *model, *STEP]
            command += ["--tokenizer", arguments.model, "--config", str(config)]
            command += ["--device", arguments.device, "--cuda-graphs", graphs]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            row = {
                "step": name,
                "graphs": graphs == "true",
                **json.loads(done.stdout.splitlines()[-1]),
            }
            seconds = row["sample_seconds"] + row["update_seconds"]
            row["tokens_per_second"] = row["tokens_sampled"] / row["sample_seconds"]
            row["dollars_per_1000_steps"] = seconds * 1000 / 3600 * arguments.price
            rows.append(row)
            console.print(row)
    return rows


def vllm(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure vLLM's tokens and weight syncs, where it is installed."""
    rows = []
    for sync in ("adapter", "merged") if find_spec("vllm") else ():
        command = [sys.executable, "-m", "benchmarks.generate_worker", f"engine {sync}"]
        command += ["--model", arguments.model, "--dtype", "bfloat16", "--device", arguments.device]
        command += ["--memory", "0.3", "--rounds", "3"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        response = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            {
                "sync": sync,
                "tokens_per_second": median(response["tokens"]),
                "sync_seconds": median(response["sync"]),
                "gap": max(response["gap"]),
            }
        )
        console.print(rows[-1])
    return rows


def show(result: dict[str, Any], price: float) -> None:
    """Print the tables."""
    gpu = result["machine"]
    update = Table(
        title=f"{gpu['gpu']}, torch {gpu['torch']}: {gpu['tflops_bfloat16']:.0f} TFLOP/s bfloat16, "
        f"{gpu['tflops_float32']:.0f} float32, {gpu['gigabytes_per_second']:.0f} GB/s, "
        f"{gpu['launch_microseconds']:.1f} us per launch"
    )
    for heading in ("update", "dtype", "ms", "x tree", "peak GB"):
        update.add_column(heading, justify="right")
    for row in result["updates"]:
        cells = f"{row['seconds'] * 1000:.1f}", f"{row['ratio']:.2f}", f"{row['peak_gb']:.2f}"
        update.add_row(row["update"], row["dtype"], *cells)
    step = Table("step", "CUDA graphs", "sample ms", "update ms", "tokens/s", "peak GB",
                 f"$ per 1000 steps at {price:.2f}/h")  # fmt: skip
    for row in result["steps"]:
        step.add_row(
            row["step"],
            "yes" if row["graphs"] else "no",
            f"{row['sample_seconds'] * 1000:.0f}",
            f"{row['update_seconds'] * 1000:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['peak_gb']:.1f}",
            f"{row['dollars_per_1000_steps']:.2f}",
        )
    engine = Table("vLLM's weights", "tokens/s", "sync ms", "gap (nats)")
    for row in result["vllm"]:
        tokens, sync = f"{row['tokens_per_second']:.0f}", f"{row['sync_seconds'] * 1000:.0f}"
        engine.add_row(row["sync"], tokens, sync, f"{row['gap']:.3f}")
    output = Console(width=110)
    output.print(update)
    output.print(step)
    output.print(engine if result["vllm"] else "vLLM is not installed: not measured")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="model folder (default: the bundled model)")
    parser.add_argument("--price", type=float, default=2.5, help="dollars per hour of the GPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    arguments.device = "cuda"
    if not torch.cuda.is_available():
        parser.error("expected an NVIDIA or AMD GPU that torch can use, found none")
    arguments.model = str(Path(arguments.model or bundled_model_path()).resolve())
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "machine": machine(),
            "updates": updates(arguments, folder),
            "steps": steps(arguments, folder),
            "vllm": vllm(arguments),
        }
    show(result, arguments.price)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
