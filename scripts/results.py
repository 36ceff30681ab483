"""Write sections of docs/results.md from the files of finished runs.

A run is a training or an evaluation. A section takes the place of the one with its title, else it
is added; the others stay. What cannot be told from a run's files, such as the runs before it, is
said in its `notes.md`.

python -m scripts.results runs/easy runs/login-user --hardware "2 cores, no GPU"
python -m scripts.results runs/easy --compare runs/episode runs/steps --hardware ...
python -m scripts.results runs/easy --protocol runs/all_125 --hardware ...
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from grpo.config import Config
from grpo.reporting.loggers import read_metrics
from grpo.reporting.progress import rate_text
from scripts.protocol import protocol_section

ROOT = Path(__file__).resolve().parent.parent

PAGES = ROOT / "docs" / "pages.md"
AGENTS = ("random", "blind", "untrained", "warm_started", "trained", "policy", "oracle")
HEAD = """\
# Results

Success rates on held-out seeds, completions sampled at temperature 1, with 95 % Wilson intervals in
brackets and the rate of greedy completions in parentheses. `random` picks any action that the page
allows, `blind` is the trained policy with the page hidden, `oracle` a scripted solver, `policy` an
adapter that was evaluated apart from its training. Training and evaluation seeds never overlap.
Training time covers rollouts, updates and, in newer runs, imitation, but no evaluations. `turns` is
the mean number of turns per episode of the trained policy. Written by `scripts/results.py` from the
files of the runs and evaluations.

A success is the whole task ([pages.md](pages.md#success)). Older runs counted any raw reward of
MiniWoB above 0, as BrowserGym does; that is the same for every task that is not in the table there.
Where BrowserGym's verdict on the trained policy differs, it has a column.

The ceiling: {ceiling} Which tasks, and why: [pages.md](pages.md).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of finished runs")
    parser.add_argument(
        "--compare", nargs="*", type=Path, default=[], help="runs to compare in one table"
    )
    parser.add_argument(
        "--protocol", nargs="*", type=Path, default=[],
        help="evaluations with examples/configs/miniwob_125.yaml, beside published rates",
    )  # fmt: skip
    parser.add_argument("--hardware", required=True, help="hardware of the runs, in words")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results.md",
                        help="file to write")  # fmt: skip
    arguments = parser.parse_args(argv)
    names = [run.name for run in arguments.runs]
    if len(set(names)) < len(names):
        parser.error(f"the runs' folders must have different names, got {', '.join(names)}")
    pages = PAGES.read_text().splitlines()
    (ceiling,) = (line for line in pages if line.startswith("Of BrowserGym's"))
    parts = [section(run, arguments.hardware) for run in arguments.runs]
    if arguments.compare:
        parts.append(comparison(arguments.compare, arguments.hardware))
    if arguments.protocol:
        try:
            parts.append(protocol_section(arguments.protocol, arguments.hardware))
        except (OSError, ValueError) as error:
            parser.error(str(error))
    old = arguments.write.read_text() if arguments.write.exists() else ""
    arguments.write.write_text(
        "\n".join([HEAD.format(ceiling=ceiling), *with_sections(old, parts)])
    )
    return 0


def with_sections(page: str, new: Sequence[str]) -> list[str]:
    """Return the sections of a page, with new ones in the place of those with their titles."""
    old = [f"## {part}".rstrip() + "\n" for part in page.split("\n## ")[1:]]
    sections = {part.partition("\n")[0]: part for part in [*old, *new]}
    return list(sections.values())


def section(run: Path, hardware: str) -> str:
    """Format one run: how it was trained, and a table of its tasks."""
    if not (run / "summary.json").exists():
        return evaluation_section(run, hardware)
    summary = json.loads((run / "summary.json").read_text())
    config = Config.from_yaml(run / "config.yaml")
    shown = "recorded demonstrations" if config.demonstrations else "the oracle"
    how = (
        f"after {config.imitation_length} that imitate {shown} (a warm start)"
        if config.imitation_length
        else "from the environment's reward alone"
    )
    if config.adapter:
        how += f", starting from the adapter `{config.adapter}` (`untrained` below)"
    steps = f"{summary['steps']} step{'s' * (summary['steps'] > 1)}"
    what = (
        f"{how[0].upper()}{how[1:]}: {steps}, {summary['episodes']:,} episodes, "
        f"{minutes(summary):.0f} minutes of training on {hardware}"
    )
    return described(run, what, summary, "trained", config.max_turns, run / "adapter", config.task)


def evaluation_section(run: Path, hardware: str) -> str:
    """Format an evaluation (`grpo eval`) of a run's adapter: a table of its tasks."""
    summary = json.loads((run / "evaluation.json").read_text())
    trained = _run_of(summary["adapter"])
    if trained is None:
        raise FileNotFoundError(f"{summary['adapter']} is in no run's folder (no config.yaml)")
    weights, tasks = trained / "adapter", trained_tasks(trained)
    what = f"Evaluated on {hardware}"
    return described(run, what, summary, "policy", summary["max_turns"], weights, tasks)


def trained_tasks(run: Path) -> list[str]:
    """Return the tasks of a run, and of the runs before it as far as their folders are there."""
    runs, tasks = list[Path](), list[str]()
    before: Path | None = run
    while before and before not in runs:  # a run may have taken the place of the one before it
        runs.append(before)
        config = Config.from_yaml(before / "config.yaml")
        tasks += config.task
        before = _run_of(config.adapter) if config.adapter else None
    return tasks


def _run_of(adapter: str) -> Path | None:
    """Return the run's folder of a path to it, to its adapter or to a checkpoint."""
    named = Path(adapter)
    return next((path for path in (named, *named.parents) if (path / "config.yaml").exists()), None)


def described(
    run: Path,
    what: str,
    summary: dict[str, Any],
    policy: str,
    max_turns: int,
    adapter: Path,
    trained_on: Sequence[str],
) -> str:
    """Format what was done, the run's notes and command, and the table of its tasks."""
    per_task = summary["per_task"]
    (weights,) = adapter.glob("adapter_model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    agents = [name for name in AGENTS if name in next(iter(per_task.values()))]
    n = max(rate["n"] for rates in per_task.values() for rate in rates[policy].values())
    turns = f"{max_turns} turn{'s' * (max_turns > 1)}"
    theirs = any(by_browsergym(rates[policy]) for rates in per_task.values())
    notes = run / "notes.md"
    lines = [
        f"## {run.name}",
        "",
        f"{what}; at most {turns} per episode; {n} held-out seeds per task. "
        f"Adapter: sha256 `{digest[:16]}`.",
        "",
        *([notes.read_text().strip(), ""] if notes.exists() else []),
        f"```sh\n{summary['command']}\n```",
        "",
        f"| task | {' | '.join(agents)} | {f'{policy}, by BrowserGym | ' * theirs}turns |",
        f"| --- |{' --- |' * (len(agents) + 1 + theirs)}",
    ]
    for task, rates in per_task.items():
        held_out = " (never trained on)" if task not in trained_on else ""
        cells = " | ".join(cell(rates[name], bold=name == policy) for name in agents)
        cells += f" | {by_browsergym(rates[policy])}" * theirs
        lines.append(f"| {task}{held_out} | {cells} | {rates[policy]['sampled']['turns']:.1f} |")
    return "\n".join(lines) + "\n"


def comparison(runs: Sequence[Path], hardware: str) -> str:
    """Format runs that differ in a few options as one table, with their progress in training.

    Of several tasks, each has a column with the trained policy's success.
    """
    configs = [Config.from_yaml(run / "config.yaml").model_dump() for run in runs]
    options = [key for key in configs[0] if key not in ("output", "resume")]
    keys = [key for key in options if len({str(c[key]) for c in configs}) > 1]
    several = len(configs[0]["task"]) > 1 and "task" not in keys
    tasks = configs[0]["task"] if several else []
    names = [*keys, "first third", "second", "last", "trained", *tasks, "minutes"]
    lines = [
        f"## Compared on {', '.join(configs[0]['task'])}: {', '.join(keys)}",
        "",
        f"On {hardware}. All other options are equal. The thirds are the mean success of the "
        "training episodes in the first, second and last third of the steps.",
        "",
        f"| {' | '.join(names)} |",
        f"|{' --- |' * len(names)}",
    ]
    for run, config in zip(runs, configs, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        success = [step["success"] for step in read_metrics(run / "metrics.jsonl")]
        ends = [len(success) * third // 3 for third in range(4)]
        thirds = [f"{mean(success[i:j]):.2f}" if i < j else "" for i, j in pairwise(ends)]
        cells = [*(str(config[key]) for key in keys), *thirds]
        per_task = (summary["per_task"][task]["trained"]["sampled"]["success"] for task in tasks)
        cells += [cell(summary["trained"], bold=True), *(f"{rate:.2f}" for rate in per_task)]
        cells += [f"{minutes(summary):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_browsergym(decodings: dict[str, Any]) -> str:
    """Format BrowserGym's verdict on an agent; empty where it is the success."""
    rate = decodings["sampled"]
    theirs = rate.get("success_browsergym", rate["success"])
    return "" if theirs == rate["success"] else f"{theirs:.2f}"


def minutes(summary: dict[str, Any]) -> float:
    """Return the minutes of imitation and training, without evaluations."""
    phases = ("rollout", "update", "sync", "imitation")  # older runs lack the last
    return float(sum(summary["seconds"].get(phase, 0) for phase in phases)) / 60


def cell(decodings: dict[str, Any], *, bold: bool) -> str:
    """Format an agent's success: sampled with its interval, and greedy."""
    rate, greedy = decodings["sampled"], decodings.get("greedy")
    number, interval = rate_text(rate).split(" ", 1)
    number = f"**{number}**" if bold else number
    if rate["n"] and greedy:
        return f"{number} {interval} ({greedy['success']:.2f})"
    return number


if __name__ == "__main__":
    sys.exit(main())
