"""What a person sees in a terminal: progress bars during the run, tables at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from grpo.distributed import World
from grpo.safe_output import accept_any_character, printable

CURVES = (
    ("reward", "mean reward"),
    ("completion_length", "completion length (tokens)"),
    ("entropy", "entropy (nats per token)"),
)


ANNOUNCE_S = 60.0
"""Seconds between the lines of a bar where there is no terminal."""

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"


class SafeConsole(Console):
    """A console that shows strings as they are: no markup, no emoji codes, no escape sequences."""

    def __init__(self, **options: Any) -> None:
        """Make the console.

        Args:
            options: those of `rich.console.Console`.
        """
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a string the text that is shown: every string comes by here, a table's as well."""
        return super().render_str(printable(text), **options)


class Bar:
    """One progress bar; call it to advance, e.g. as `on_episode`."""

    def __init__(self, progress: Progress, task: TaskID, *, announced: bool) -> None:
        self._progress, self._task, self._announced = progress, task, announced
        self._said = time.monotonic()

    def __call__(self, *_: object) -> None:
        """Advance by one, whatever the arguments."""
        self._progress.advance(self._task)
        if self._announced and time.monotonic() - self._said >= ANNOUNCE_S:
            self._said = time.monotonic()
            task = next(task for task in self._progress.tasks if task.id == self._task)
            done = f"{task.completed:.0f} of {task.total:.0f}"
            left = TimeRemainingColumn().render(task)
            self._progress.console.print(f"{task.description}: {done}, {left} left")

    def reset(self) -> None:
        """Set the bar and its clock back to 0."""
        self._progress.reset(self._task)


class Bars:
    """Nested progress bars, e.g. episodes inside steps, with the remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description:<26}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=300.0,  # over rich's 30 s the time left jumps about
        )
        self._open = 0

    @classmethod
    def for_world(cls, world: World) -> Bars:
        """Make the bars of a program; only those of the main rank are shown."""
        width = None if sys.stdout.isatty() else 120  # of a log: tables are not folded to 80
        accept_any_character(sys.stdout)
        return cls(SafeConsole(quiet=not world.is_main, width=width))

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show a line while the block runs: with a spinner, or once where there is no terminal."""
        if self.console.is_interactive:
            with self.console.status(Text(printable(text)), spinner="line"):
                yield
        else:
            self.console.print(text)
            yield

    @contextmanager
    def bar(self, description: str, total: int, *, announced: bool = False) -> Iterator[Bar]:
        """Show a bar for the length of the block.

        Args:
            description: what it counts.
            total: how many there are.
            announced: True to print the number of episodes where there is no terminal, and every
                minute how many are done.
        """
        announced = announced and not self.console.is_interactive
        if announced:
            self.console.print(f"{description}: {count(total, 'episode')}")
        if not self._open:
            self._progress.start()
        self._open += 1
        task = self._progress.add_task(printable(description), total=total)
        try:
            yield Bar(self._progress, task, announced=announced)
        finally:
            self._progress.remove_task(task)
            self._open -= 1
            if not self._open:
                self._progress.stop()


def step_line(step: int, metrics: dict[str, float]) -> str:
    """Describe one training step in a line."""
    parts = [f"step {step:>3}"]
    for name, form in (
        ("reward", "reward {:.2f}"),
        ("success", "success {:.2f}"),
        ("invalid_action_rate", "invalid {:.2f}"),
        ("completion_length", "{:.1f} tokens"),
        ("entropy", "entropy {:.2f}"),
        ("kl", "kl {:.3f}"),
        ("seconds/rollout", "rollout {:.1f}s"),
        ("seconds/update", "update {:.1f}s"),
    ):
        if name in metrics:
            parts.append(form.format(metrics[name]))
    if metrics.get("update/skipped"):
        parts.append("update skipped")
    return "  ".join(parts)


def imitation_line(step: int, metrics: dict[str, float]) -> str:
    """Describe the measurement after an update of a warm start in a line."""
    own = f"loss {metrics['imitation/loss']:.3f}  " if step else ""
    return (
        f"update {step:>3}  {own}held-out loss {metrics['imitation/held_out_loss']:.3f}  "
        f"repeated {metrics['imitation/held_out_greedy']:.2f}"
    )


def sparkline(
    steps: Sequence[dict[str, float]],
    name: str = "success",
    width: int = 60,
    *,
    ascii_only: bool = False,
) -> str:
    """Draw a metric between 0 and 1 as a row of blocks, averaged down to the width."""
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    values = [step[name] for step in steps if name in step]
    bins = min(width, len(values))
    edges = [i * len(values) // bins for i in range(bins + 1)] if bins else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    return "".join(blocks[round(7 * min(1.0, max(0.0, mean)))] for mean in means)


def time_line(summary: dict[str, Any]) -> str:
    """Say in a line where the time of a run went."""
    seconds = summary["seconds"]
    steps, episodes = count(summary["steps"], "step"), count(summary["episodes"], "episode")
    imitation = f"imitation {seconds['imitation']:.0f}, " if seconds.get("imitation") else ""
    return (
        f"{steps}, {episodes}. Seconds: set-up {seconds['setup']:.0f}, {imitation}"
        f"evaluation {seconds['eval']:.0f}, updates {seconds['update']:.0f}, rollouts "
        f"{seconds['rollout']:.0f} ({seconds['env']:.0f} of them waiting for environments alone)"
    )


def success_table(summary: dict[str, Any]) -> Table:
    """Make the success rates of a summary a table: one column per agent.

    There is one row per task and decoding, and one per benchmark's own verdict, of sampled
    completions, where that differs from success. The last column is the last agent's mean number
    of completions per episode.
    """
    tasks = dict(summary["per_task"])
    names = list(next(iter(tasks.values())))
    # Rates before training stand left of those after it, also in a resumed run.
    newest = ("trained", "policy")
    agents = sorted(names, key=lambda name: (name in newest, name in ("blind", "untrained")))
    n = max(rate["n"] for rates in tasks.values() for rate in rates[agents[0]].values())
    table = Table(title=f"success on {n} held-out seeds per task [95 % interval]")
    if len(tasks) > 1:
        tasks["all"] = {name: summary[name] for name in agents}
    table.add_column("task", no_wrap=True)
    table.add_column("decoding")
    for name in agents:
        table.add_column(name, justify="right", style="bold green" if name in newest else "")
    table.add_column("turns", justify="right")
    for task, rates in tasks.items():
        for decoding in ("sampled", "greedy"):
            cells = [rate_text(rates[name].get(decoding)) for name in agents]
            last = rates[agents[-1]].get(decoding)
            turns = f"{last['turns']:.1f}" if last else ""
            table.add_row(task if decoding == "sampled" else "", decoding, *cells, turns)
        sampled = [rates[name].get("sampled") or {} for name in agents]
        for verdict in sorted({key for rate in sampled for key in rate if key[:8] == "success_"}):
            if any(rate.get(verdict, 0) != rate.get("success") for rate in sampled if rate):
                cells = [f"{rate[verdict]:.2f}" if verdict in rate else "" for rate in sampled]
                table.add_row("", verdict, *cells, "")
    return table


def count(number: int, noun: str) -> str:
    """Say how many there are, e.g. 1 step, 2 steps."""
    return f"{number} {noun}{'s' * (number != 1)}"


def rate_text(rate: dict[str, float] | None) -> str:
    """Format a success rate with its interval; "" where none was measured."""
    return f"{rate['success']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else ""
