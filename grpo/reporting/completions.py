"""A few episodes of a step as a table: what the policy said, and the advantage it got for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from grpo.safe_output import markdown, one_line, printable
from grpo.types import Episode, Group

GROUPS = 4
"""Groups of a step that are shown."""


class CompletionRow(NamedTuple):
    """One episode: a row of the table. Completions and advantages have one line per turn.

    Its texts are printable.
    """

    task: str
    seed: int
    goal: str
    completions: str
    reward: float
    advantages: str


def completion_rows(groups: Sequence[Group], advantages: Tensor) -> list[CompletionRow]:
    """Return the best and the worst episode of a step's first groups.

    Args:
        groups: the step's groups, with E episodes.
        advantages: [E, K] of their turns, as the update used them.
    """
    rows, first = [], 0
    for group in groups[:GROUPS]:
        last = first + len(group.episodes)
        pairs = zip(group.episodes, advantages[first:last].tolist(), strict=True)
        ordered = sorted(pairs, key=lambda pair: -pair[0].reward)
        rows += [_row(*pair) for pair in (ordered[0], ordered[-1])]
        first = last
    return rows


def as_table(rows: Sequence[CompletionRow]) -> Table:
    """Make the rows a table for a terminal or a text file."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in CompletionRow._fields:
        table.add_column(name, justify="right" if name in ("reward", "advantages") else "left")
    for row in rows:
        table.add_row(*map(Text, _cells(row)))  # as text: a completion's [b] is not markup
    return table


def as_markdown(rows: Sequence[CompletionRow]) -> str:
    """Make the rows a table in Markdown."""
    lines: list[Sequence[str]] = [CompletionRow._fields, ["---"] * len(CompletionRow._fields)]
    lines += map(_cells, rows)
    safe = (["<br>".join(map(markdown, cell.splitlines())) for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in safe)


def _row(episode: Episode, advantages: Sequence[float]) -> CompletionRow:
    texts = [
        printable(" ".join(turn.text.split()))
        + ("" if turn.valid_action else "  (not a valid action)")
        for turn in episode.turns
    ]
    return CompletionRow(
        one_line(episode.task.name),
        episode.task.seed,
        printable(episode.goal),
        "\n".join(texts),
        episode.reward,
        "\n".join(f"{advantage:+.2f}" for advantage in advantages[: len(texts)]),
    )


def _cells(row: CompletionRow) -> list[str]:
    return [*map(str, row[:4]), f"{row.reward:g}", row.advantages]
