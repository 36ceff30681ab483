"""A run to look at while it goes on: its state, success per task, what changed, two episodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.files import remove
from grpo.reporting.gallery import RUNNING, TRAINING, write_gallery, write_state
from grpo.reporting.loggers import read_metrics
from grpo.reporting.overview import overview
from grpo.reporting.recording import record_replay
from grpo.rollouts.gather import gather
from grpo.safe_output import without_passwords
from grpo.types import Episode, Group

if TYPE_CHECKING:
    from rich.console import Console

    from grpo.runtime import Runtime
    from grpo.training.trainer import TrainingStep

STEPS_KEPT = 10
"""Training steps whose episodes stay on the page: the newest."""

TITLE_TASKS = 4
"""Tasks that the page's title names."""


class Watch:
    """Keeps the page `media/index.html` of a program up to date; on the main rank alone.

    A failure is shown once, and does not end the program. A page is replaced as a whole.
    """

    def __init__(self, runtime: Runtime, program: str, console: Console, step: int = 0) -> None:
        """Begin a page, or continue that of the run that is resumed.

        Args:
            runtime: what the program runs on.
            program: "training" or "evaluation".
            console: shows the first failure.
            step: training steps done; episodes of later ones are removed.
        """
        config = runtime.config
        self._runtime, self._console, self._media = runtime, console, config.folder / "media"
        self._is_on = runtime.world.is_main and bool(config.eval_episodes or config.gallery_every)
        model = Path(runtime.policy.name).name  # not where it lies: galleries are shown around
        more = len(config.task) - TITLE_TASKS
        names = [*config.task[:TITLE_TASKS], *([f"{more} more tasks"] if more > 0 else []), model]
        self._title = ", ".join(filter(None, names))
        self._state: dict[str, Any] = {"program": program, "phase": RUNNING, "doing": ""}
        if program == "training":
            self._state |= {"step": step, "steps": config.steps}
            for path in self._recorded() if self._is_on else []:
                if int(path.name) > step:
                    remove(path)
        self._shown: list[str] = []
        self._has_failed = False

    def begin(self, doing: str, summary: Mapping[str, Any]) -> None:
        """Say what the program does next, e.g. "evaluating random", and show what it has found.

        An evaluation that has found nothing leaves nothing, so it has no page yet.
        """
        with self._guarded():
            if self._state["program"] == "training" or "per_task" in summary:
                self._write(summary, doing=doing)

    async def step(self, step: TrainingStep, summary: Mapping[str, Any]) -> None:
        """Show a training step: its number, and every `gallery_every` steps its episodes."""
        every, steps = self._runtime.config.gallery_every, self._runtime.config.steps
        if not self._is_on or not every:
            return
        self._state |= {"step": step.step, "doing": "training"}
        self._state |= {name: step.metrics[name] for name in ("success", "reward")}
        with self._guarded():
            if (step.step - 1) % every and step.step != steps:
                self._state["written"] = time.time()
                write_state(self._media, self._state)
            else:
                await self._record(step)
                self._write(summary)

    def finish(self, summary: Mapping[str, Any], changes: Sequence[str] = ()) -> None:
        """Write the page of a finished program, which no longer refreshes itself.

        Args:
            summary: success rates, as the report holds them.
            changes: lines about what the training has changed.

        Raises:
            OSError: it cannot be written.
        """
        self._write(summary, changes, phase="finished", doing="")

    def _write(self, summary: Mapping[str, Any], changes: Sequence[str] = (), **state: str) -> None:
        if not self._is_on:
            return
        config, now = self._runtime.config, time.time()
        self._state |= {"written": now, "version": str(now), **state}
        rates = overview(
            config.evaluated_tasks,
            read_metrics(config.folder / "metrics.jsonl"),
            summary,
            every=config.gallery_every,
            is_over=self._state["phase"] != RUNNING,
            changes=changes,
        )
        write_gallery(self._media, title=self._title, state=self._state, overview=rates)

    async def _record(self, step: TrainingStep) -> None:
        config = self._runtime.config
        chosen = best_and_worst(step.groups, self._shown)
        folder, bonus = self._media / TRAINING / str(step.step), config.valid_action_bonus
        await gather(
            record_replay(self._runtime.pool, episode, folder / role, bonus=bonus)
            for role, episode in chosen.items()
        )
        self._shown += [episode.task.name for episode in chosen.values()]
        for path in self._recorded()[:-STEPS_KEPT]:
            remove(path)

    def _recorded(self) -> list[Path]:
        """Return the folders of the recorded steps, in their order."""
        folders = [path for path in (self._media / TRAINING).glob("*") if path.name.isdecimal()]
        return sorted(folders, key=lambda path: int(path.name))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                reason = without_passwords(error) or type(error).__name__
                text = f"the run goes on without its page {self._media / 'index.html'}: {reason}"
                with suppress(OSError):  # a terminal that was closed
                    self._console.print(text, soft_wrap=True)
            self._has_failed = True


def best_and_worst(groups: Sequence[Group], shown: Sequence[str] = ()) -> dict[str, Episode]:
    """Choose the episodes of the highest and of the lowest reward.

    Where several have it, the two are of one group, if one has both (one start, two ends: what
    the update learns from), and of the task that was shown the longest ago.

    Args:
        groups: of a training step.
        shown: tasks that were shown before, the newest last.

    Returns:
        The episodes by role: "best" and "worst", or "all equal" alone where all rewards are equal.
    """
    rewards = [episode.reward for group in groups for episode in group.episodes]
    latest = {name: i for i, name in enumerate(shown)}
    ordered = sorted(groups, key=lambda group: latest.get(group.task.name, -1))
    best, worst = (
        [_with(group, reward) for group in ordered] for reward in (max(rewards), min(rewards))
    )
    if max(rewards) == min(rewards):
        return {"all equal": next(filter(None, best))}
    for high, low in zip(best, worst, strict=True):
        if high and low:
            return {"best": high, "worst": low}
    return {"best": next(filter(None, best)), "worst": next(filter(None, worst))}


def _with(group: Group, reward: float) -> Episode | None:
    return next((episode for episode in group.episodes if episode.reward == reward), None)
