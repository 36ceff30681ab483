"""What the policy said: a few episodes of a step as a table that a person reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from grpo.algorithm.advantages import group_advantages
from grpo.config import Config
from grpo.types import Episode, Group

GROUPS = 4
"""Groups of a step that are shown."""


class CompletionRow(NamedTuple):
    """One episode: a line of the table."""

    task: str
    seed: int
    goal: str
    answers: str
    reward: float
    advantage: float


def said(groups: Sequence[Group], config: Config) -> list[CompletionRow]:
    """The best and the worst episode of a step's first groups: what the update told apart.

    Args:
        groups: the step's.
        config: says how advantages are made.
    """
    rewards = torch.tensor([e.reward for group in groups for e in group.episodes])
    group_ids = torch.tensor([g for g, group in enumerate(groups) for _ in group.episodes])
    scale, baseline = config.scale_rewards, config.baseline
    advantages = group_advantages(rewards, group_ids, scale=scale, baseline=baseline)
    lines = []
    for g, group in enumerate(groups[:GROUPS]):
        own = zip(group.episodes, advantages[group_ids == g].tolist(), strict=True)
        ordered = sorted(own, key=lambda pair: -pair[0].reward)
        for episode, advantage in (ordered[0], ordered[-1]):
            task, reward = episode.task, episode.reward
            lines.append(
                CompletionRow(
                    task.name, task.seed, episode.goal, _answers(episode), reward, advantage
                )
            )
    return lines


def as_table(lines: Sequence[CompletionRow]) -> Table:
    """The lines for a terminal or a text file."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in CompletionRow._fields:
        table.add_column(name, justify="right" if name in ("reward", "advantage") else "left")
    for line in lines:
        table.add_row(*map(Text, _cells(line)))  # as text: an answer's [b] is no markup
    return table


def as_markdown(lines: Sequence[CompletionRow]) -> str:
    """The lines as a table of Markdown."""
    rows = [CompletionRow._fields, ["---"] * len(CompletionRow._fields), *map(_cells, lines)]
    safe = ([cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in safe)


def _cells(line: CompletionRow) -> list[str]:
    return [*map(str, line[:4]), f"{line.reward:g}", f"{line.advantage:+.2f}"]


def _answers(episode: Episode) -> str:
    """Each answer on a line of its own, what was no action marked."""
    return "\n".join(
        " ".join(turn.text.split()) + ("" if turn.valid_action else "  (no action)")
        for turn in episode.turns
    )
