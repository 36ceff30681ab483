"""Success on BrowserGym's protocol for MiniWoB: every task, 5 seeds, 10 actions at most.

The mean is over the tasks, by BrowserGym's verdict, to compare with what others published, and by
ours, for which a success is the whole task. A task that a file lacks counts as 5
failures, an episode that was lost as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from envs.browser.miniwob.names import MINIWOB_TASKS
from grpo.config import Config
from grpo.rollouts.evaluation import wilson_interval

SEEDS, MAX_TURNS = 5, 10
EPISODES = SEEDS * len(MINIWOB_TASKS)


class Published(NamedTuple):
    """A published success rate on this protocol, by BrowserGym's verdict."""

    agent: str
    success: float
    source: str


_PAPER = "[BrowserGym's paper](https://arxiv.org/abs/2412.05467)"
_JOURNAL = (
    "[AgentLab's journal](https://github.com/ServiceNow/AgentLab/blob/"
    "02d4ee97c45115a8e29ec75ae96148fa0ca1475f/reproducibility_journal.csv), {}, 625 of 625"
)

PUBLISHED = (
    Published("GPT-4o-mini", 0.566, _PAPER),
    Published("GPT-4o-mini (2024-07-18)", 0.563, _JOURNAL.format("2024-10-17")),
    Published("GPT-4o (2024-05-13)", 0.656, _JOURNAL.format("2024-09-21")),
)
"""Rates and where they are published; the journal is of AgentLab's GenericAgent."""


def protocol_section(runs: Sequence[Path], hardware: str) -> str:
    """Format the table of evaluated runs, beside the published rates.

    Args:
        runs: folders of evaluations (or of training runs, whose evaluations then count).
        hardware: hardware of the runs, in words.

    Raises:
        ValueError: a run did not keep to the protocol; the message says how.
    """
    lines = [
        f"## BrowserGym's protocol: {len(MINIWOB_TASKS)} tasks, {SEEDS} seeds",
        "",
        f"On {hardware}; at most {MAX_TURNS} actions per episode. Means over all tasks of MiniWoB, "
        "with 95 % Wilson intervals over the episodes; a task that was not played counts as 0, "
        "and an episode that the infrastructure lost as unsolved. "
        "`by BrowserGym` is BrowserGym's verdict, any raw reward above 0, as in the published "
        "rates; `whole task` is the success of this project ([pages.md](pages.md#success)). The "
        "published agents read other observations and have other actions. Their rows give the "
        "intervals of as many episodes.",
        "",
        "| agent | by BrowserGym | whole task | tasks played, episodes lost | source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in runs:
        per_task = read_run(run)
        for agent, decoding in rows_of(per_task):
            rates = {
                name: rates[agent][decoding]
                for name, rates in per_task.items()
                if decoding in rates.get(agent, {})
            }
            lost = sum(SEEDS - rate["n"] for rate in rates.values())
            played = f"{len(rates)}{f', {lost} lost' * (lost > 0)}"
            cells = [f"{run.name}: {agent}, {decoding}", *means(rates), played, ""]
            lines.append(f"| {' | '.join(cells)} |")
    for row in PUBLISHED:
        theirs = with_interval(round(row.success * EPISODES), row.success)
        lines.append(f"| {row.agent} | {theirs} | | {len(MINIWOB_TASKS)} | {row.source} |")
    return "\n".join(lines) + "\n"


def read_run(run: Path) -> dict[str, Any]:
    """Return what a run's file holds per task of MiniWoB.

    Raises:
        ValueError: episodes could be longer than the protocol's, or there are no such tasks.
    """
    path = run / "evaluation.json"
    summary = json.loads((path if path.exists() else run / "summary.json").read_text())
    turns = summary.get("max_turns") or Config.from_yaml(run / "config.yaml").max_turns
    if turns > MAX_TURNS:
        raise ValueError(f"{run}: expected at most {MAX_TURNS} turns per episode, got {turns}")
    tasks = {name: rates for name, rates in summary["per_task"].items() if name in MINIWOB_TASKS}
    if not tasks:
        raise ValueError(f"{run}: expected tasks of MiniWoB, got {', '.join(summary['per_task'])}")
    return tasks


def rows_of(per_task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List the agents and decodings of a run, in the file's order."""
    first = next(iter(per_task.values()))
    return [(agent, decoding) for agent, decodings in first.items() for decoding in decodings]


def means(rates: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """Format the mean by BrowserGym's verdict, and that of whole tasks, with their intervals.

    Where other tasks have all their episodes, those that one lacks were lost to failures of the
    infrastructure, and count as unsolved.

    Raises:
        ValueError: the tasks were played on other numbers of seeds, or a file has no verdict of
            BrowserGym's.
    """
    solved = by_browsergym = 0
    most = max(rate["n"] for rate in rates.values())
    for name, rate in rates.items():
        if most < SEEDS or rate["n"] > SEEDS:
            raise ValueError(f"{name}: expected {SEEDS} episodes, got {rate['n']}")
        if "success_browsergym" not in rate:
            raise ValueError(f"{name}: expected success_browsergym beside success: evaluate again")
        solved += round(rate["success"] * rate["n"])
        by_browsergym += round(rate["success_browsergym"] * rate["n"])
    return with_interval(by_browsergym), with_interval(solved)


def with_interval(successes: int, rate: float | None = None) -> str:
    """Format a rate over the protocol's episodes with its interval."""
    low, high = wilson_interval(successes, EPISODES)
    return f"{successes / EPISODES if rate is None else rate:.3f} [{low:.3f}, {high:.3f}]"
