"""Write docs/results.md from the folders of finished runs: every figure is a run's own.

python scripts/results.py runs/easy runs/login-user --hardware "2 cores, no GPU"
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from grpo.config import Config  # noqa: E402

POLICIES = ("random", "blind", "untrained", "warm_started", "trained", "oracle")
HEAD = """\
# Results

Success over held-out seeds [95 % interval, Wilson], answers sampled at temperature 1 (greedy).
`random` does any action that the page allows, `blind` is the trained policy with the page hidden,
`oracle` a scripted solver. The seeds of training and those of evaluation never meet. Training time
is that of rollouts and updates; evaluations come on top. `answers` is the mean number of answers of
the trained policy's episodes. This page is written by `scripts/results.py` from the runs' own
`summary.json`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--hardware", required=True, help="what they were made on, in words")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args(argv)
    sections = [section(run, arguments.hardware) for run in arguments.runs]
    arguments.write.write_text("\n".join([HEAD, *sections]))
    return 0


def section(run: Path, hardware: str) -> str:
    """One run: what was done, and a table of its tasks."""
    summary = json.loads((run / "summary.json").read_text())
    config = Config.from_yaml(run / "config.yaml")
    seconds = summary["seconds"]
    minutes = sum(seconds[phase] for phase in ("rollout", "update", "sync")) / 60
    (weights,) = (run / "adapter").glob("adapter_model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    columns = [who for who in POLICIES if who in next(iter(summary["per_task"].values()))]
    n = max(
        rate["n"] for rates in summary["per_task"].values() for rate in rates["trained"].values()
    )
    how = (
        f"after {config.warm_start_steps} updates of imitating the oracle (a warm start)"
        if config.warm_start_steps
        else "from the environment's reward alone"
    )
    answers = f"{config.max_steps} answer{'s' * (config.max_steps > 1)}"
    lines = [
        f"## {run.name}",
        "",
        f"{how.capitalize()}: {summary['steps']} steps, {summary['episodes']:,} episodes, "
        f"{minutes:.0f} minutes of training on {hardware}; {answers} an episode at most; "
        f"{n} held-out seeds a task. Adapter: sha256 `{digest[:16]}`.",
        "",
        f"```sh\npython {summary['command']}\n```",
        "",
        f"| task | {' | '.join(columns)} | answers |",
        f"| --- |{' --- |' * (len(columns) + 1)}",
    ]
    for task, rates in summary["per_task"].items():
        held_out = " (never trained on)" if task not in config.tasks else ""
        cells = " | ".join(cell(rates[who], bold=who == "trained") for who in columns)
        lines.append(f"| {task}{held_out} | {cells} | {rates['trained']['sampled']['steps']:.1f} |")
    return "\n".join(lines) + "\n"


def cell(ways: dict[str, Any], *, bold: bool) -> str:
    """A policy's success: sampled with its interval, greedy behind."""
    rate = ways["sampled"]
    text = f"{rate['success']:.2f}"
    text = f"**{text}**" if bold else text
    if rate["n"] and ways.get("greedy"):
        text += f" [{rate['low']:.2f}, {rate['high']:.2f}] ({ways['greedy']['success']:.2f})"
    return text


if __name__ == "__main__":
    sys.exit(main())
