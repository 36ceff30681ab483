"""What `grpo inspect` has found out about a task, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import ROUNDED
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from envs.base import Observation, Task
from grpo.reporting.progress import count
from grpo.rollouts.evaluation import Outcome, Success
from grpo.rollouts.rollout import Rollouts
from grpo.safe_output import one_line, printable
from grpo.types import Episode

SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Played:
    """Episodes of one agent.

    Attributes:
        rate: how many of them succeeded.
        actions: number of actions.
        invalid: number of actions that the environment did not take for one of its own.
        failed: number of actions that had an error instead of an effect, by that error.
        lost: number of episodes that the infrastructure could not play to an end.
        failures: number of failures of the infrastructure, retried ones included.
        last_failure: message of the last one.
    """

    rate: Success
    actions: int
    invalid: int
    failed: Counter[str]
    lost: int
    failures: int
    last_failure: str

    @classmethod
    def of(cls, episodes: Sequence[Episode | None], rollouts: Rollouts) -> Played:
        """Count what happened in episodes that were recorded; None is one that was lost."""
        played = [episode for episode in episodes if episode is not None]
        results = [r.result for e in played for r in e.records if r.result is not None]
        valid = [result for result in results if result.valid_action]
        return cls(
            Success.of(map(Outcome.of, played)),
            len(results),
            len(results) - len(valid),
            Counter(r.observation.error for r in valid if r.observation.error),
            len(episodes) - len(played),
            rollouts.counters["env_failures"],
            rollouts.last_error,
        )


@dataclass(frozen=True)
class Inspection:
    """A task as a policy meets it.

    Attributes:
        task: the task, and the seed of its first page.
        model: name of the model.
        observation: the first page.
        page_tokens: number of tokens of the page.
        prompt_tokens: number of tokens of the whole prompt.
        max_tokens: how many a prompt may have.
        lines_cut: number of lines of the page that are left out of the prompt.
        longest: number of tokens of the longest prompt in the random agent's episodes.
        random: the random agent's episodes.
        scripted: those of the task's own demonstration; None if there is none.
        picture: the screenshot with ids; None if there is none.
        drawn: number of elements whose id is on the screenshot.
    """

    task: Task
    model: str
    observation: Observation
    page_tokens: int
    prompt_tokens: int
    max_tokens: int
    lines_cut: int
    longest: int
    random: Played
    scripted: Played | None
    picture: Path | None
    drawn: int


def print_inspection(console: Console, found: Inspection) -> None:
    """Print what was found out about a task."""
    console.print()
    console.rule(Text(one_line(found.task.name), "bold"), align="left", characters="─")
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("goal", found.observation.goal)
    model = f"{one_line(found.model)}, seed {found.task.seed}"
    facts.add_row("prompt", _prompt_size(found))
    facts.add_row("page", f"{count(found.page_tokens, 'token')} ({model})")
    console.print(facts)
    page = Text(printable(found.observation.page or "(empty)"), overflow="fold")
    console.print(Panel(page, box=ROUNDED, border_style="dim", expand=False))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("random agent", Group(*_played(found.random)))
    if found.scripted is None:
        facts.add_row("demonstration", "none")
    else:
        facts.add_row("demonstration", Group(*_played(found.scripted)))
    facts.add_row("infrastructure", _failures(found))
    if found.picture is not None:
        size = count(found.drawn, "element")
        facts.add_row("screenshot", f"{found.picture}  ({size} in the window)")
    console.print(facts)


def _prompt_size(found: Inspection) -> str:
    """Say how many tokens the prompts have, and how many they may have."""
    longest = max(found.longest, found.prompt_tokens)
    text = (
        f"{found.prompt_tokens:,} tokens, {longest:,} for the longest of the episodes below; "
        f"{found.max_tokens:,} at most"
    )
    cut = f": the last {count(found.lines_cut, 'line')} of the page are left out"
    return text + cut * bool(found.lines_cut)


def _played(played: Played) -> list[str]:
    """Describe an agent's episodes, one thing per line."""
    rate = played.rate
    if not rate.n:
        return ["no episode was played"]
    lines = [
        f"success {rate.success:.2f} [{rate.low:.2f}, {rate.high:.2f}] in "
        f"{count(rate.n, 'episode')}, {rate.turns:.1f} actions each"
    ]
    failed = sum(played.failed.values())
    if failed or played.invalid:
        lines.append(
            f"of {count(played.actions, 'action')} {failed} failed, {played.invalid} were invalid"
        )
    lines += [f"{n} x {error}" for error, n in played.failed.most_common(SHOWN_ERRORS)]
    return lines


def _failures(found: Inspection) -> str:
    """Say what the infrastructure lost."""
    every = [found.random, *([found.scripted] if found.scripted else [])]
    failures, lost = sum(each.failures for each in every), sum(each.lost for each in every)
    if not failures:
        return "no failure"
    last = next(each.last_failure for each in every if each.failures)
    return f"{count(failures, 'failure')}, {count(lost, 'episode')} lost; the last: {last}"
