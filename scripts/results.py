"""Write docs/results.md from the folders of finished runs: every figure is a run's own.

python scripts/results.py runs/easy runs/login-user --hardware "2 cores, no GPU"
python scripts/results.py runs/easy --compare runs/episode runs/steps --hardware ...
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from grpo.config import Config
from grpo.reporting.loggers import read_metrics
from grpo.reporting.progress import rate_text

ROOT = Path(__file__).resolve().parent.parent

PAGES = ROOT / "docs" / "pages.md"
POLICIES = ("random", "blind", "untrained", "warm_started", "trained", "oracle")
HEAD = """\
# Results

Success over held-out seeds [95 % interval, Wilson], answers sampled at temperature 1 (greedy).
`random` does any action that the page allows, `blind` is the trained policy with the page hidden,
`oracle` a scripted solver. The seeds of training and those of evaluation never meet. Training time
is that of rollouts and updates; evaluations come on top. `answers` is the mean number of answers of
the trained policy's episodes. This page is written by `scripts/results.py` from the runs' own
`summary.json`.

The ceiling: {ceiling} Which they are, and why: [pages.md](pages.md).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--compare", nargs="*", type=Path, default=[], help="runs side by side")
    parser.add_argument("--hardware", required=True, help="what they were made on, in words")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results.md")
    arguments = parser.parse_args(argv)
    pages = PAGES.read_text().splitlines()
    (ceiling,) = (line for line in pages if line.startswith("Of BrowserGym's"))
    parts = [HEAD.format(ceiling=ceiling)]
    parts += [section(run, arguments.hardware) for run in arguments.runs]
    if arguments.compare:
        parts.append(comparison(arguments.compare, arguments.hardware))
    arguments.write.write_text("\n".join(parts))
    return 0


def section(run: Path, hardware: str) -> str:
    """One run: what was done, and a table of its tasks."""
    summary = json.loads((run / "summary.json").read_text())
    config = Config.from_yaml(run / "config.yaml")
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
    if config.adapter:
        how += f", from the adapter `{config.adapter}`, which is `untrained` here"
    answers = f"{config.max_turns} answer{'s' * (config.max_turns > 1)}"
    lines = [
        f"## {run.name}",
        "",
        f"{how.capitalize()}: {summary['steps']} steps, {summary['episodes']:,} episodes, "
        f"{minutes(summary):.0f} minutes of training on {hardware}; {answers} an episode at most; "
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


def comparison(runs: Sequence[Path], hardware: str) -> str:
    """Runs that differ in a few options, side by side: how each learned, and what came of it."""
    configs = [asdict(Config.from_yaml(run / "config.yaml")) for run in runs]
    options = [key for key in configs[0] if key not in ("output", "resume")]
    keys = [key for key in options if len({str(c[key]) for c in configs}) > 1]
    names = [*keys, "first third", "second", "last", "trained", "minutes"]
    lines = [
        f"## Compared on {configs[0]['task']}: {', '.join(keys)}",
        "",
        f"On {hardware}. The same options but for these; the thirds are the mean success of the "
        "sampled episodes over the first, second and last third of the training steps.",
        "",
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
    ]
    for run, config in zip(runs, configs, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        success = [step["success"] for step in read_metrics(run / "metrics.jsonl")]
        ends = [len(success) * third // 3 for third in range(4)]
        thirds = [f"{mean(success[i:j]):.2f}" for i, j in pairwise(ends)]
        cells = [*(str(config[key]) for key in keys), *thirds]
        cells += [cell(summary["trained"], bold=True), f"{minutes(summary):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def minutes(summary: dict[str, Any]) -> float:
    """What training took, evaluations left out."""
    return float(sum(summary["seconds"][phase] for phase in ("rollout", "update", "sync"))) / 60


def cell(ways: dict[str, Any], *, bold: bool) -> str:
    """A policy's success: sampled with its interval, greedy behind."""
    rate, greedy = ways["sampled"], ways.get("greedy")
    number, interval = rate_text(rate).split(" ", 1)
    number = f"**{number}**" if bold else number
    if rate["n"] and greedy:
        return f"{number} {interval} ({greedy['success']:.2f})"
    return number


if __name__ == "__main__":
    sys.exit(main())
