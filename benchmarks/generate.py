"""Seconds per sync and tokens per second: the local generator, vLLM in-process, a vLLM server.

The generators run one after the other, each in its own process, on the same model and the same
32 requests: 4 groups of 8, 317-token prompts that share 170 tokens, up to 16 new tokens. A sync
lasts until the generator samples with the trainer's new adapter, merging included.

    make benchmark-generate                              # ten minutes on two cores
    make benchmark-generate ARGS="--dtype bfloat16"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo.model.bundled import bundled_model_path

ROOT = Path(__file__).resolve().parent.parent

GENERATORS = (
    *("local", "engine adapter", "engine merged", "engine trl"),
    *("server adapter", "server merged"),
)
console = Console(stderr=True)


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one generator; a failure becomes `{"error": its last line of output}`."""
    command = [sys.executable, "-m", "benchmarks.generate_worker", name]
    for option in ("model", "dtype", "device", "memory", "rounds"):
        command += [f"--{option}", str(getattr(arguments, option))]
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        if done.returncode == 0:
            measured = json.loads(done.stdout)
            result = {key: median(measured[key]) for key in ("sync", "tokens")}
            result |= {"gap": mean(measured["gap"]), "raw": measured}
        else:
            log.seek(0)
            lines = log.read().strip().splitlines() or [f"ended with {done.returncode}"]
            result = {"error": lines[-1][:300]}
    result["load"] = os.getloadavg()[0]
    console.print(f"{name}: {result}")
    return result


def show(results: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print the table."""
    title = f"32 requests, {arguments.dtype}, {arguments.device}, medians of {arguments.rounds}"
    table = Table("generator", "sync s", "tokens/s", "gap, nats", "load", title=title)
    for name, result in results.items():
        if "error" in result:
            table.add_row(name, "-", "-", result["error"], f"{result['load']:.1f}")
            continue
        table.add_row(
            name,
            f"{result['sync']:.3f}",
            f"{result['tokens']:.1f}",
            f"{result['gap']:.1e}",
            f"{result['load']:.1f}",
        )
    Console().print(table)


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the largest gap, how long syncs take and how fast vLLM samples, as ratios."""
    adapter, merged = results["engine adapter"], results["engine merged"]
    fastest = max(adapter["tokens"], merged["tokens"])
    vllm = [name for name in results if name not in ("local", "engine trl")]
    return {
        "logprob_gap": max(results[name]["gap"] for name in vllm),
        "sync_ratio_merged": adapter["sync"] / merged["sync"],
        "tokens_ratio_local": fastest / results["local"]["tokens"],
        "generators": results,
    }


def main() -> None:
    """Measure every generator and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="", help="model folder (default: the bundled model)")
    parser.add_argument(
        "--dtype", default="float32", help="dtype of the weights: float32 or bfloat16"
    )
    parser.add_argument("--device", default="cpu", help="device: cpu or cuda")
    parser.add_argument(
        "--memory",
        type=float,
        default=0.5,
        help="share of GPU memory for vLLM, or GiB of cache on a CPU",
    )
    parser.add_argument("--rounds", type=int, default=3, help="syncs per generator")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    arguments.model = str(Path(arguments.model or bundled_model_path()).resolve())
    results = {name: run(name, arguments) for name in GENERATORS}
    show(results, arguments)
    failed = [name for name, r in results.items() if "error" in r and name != "engine trl"]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if arguments.json:
        print(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
