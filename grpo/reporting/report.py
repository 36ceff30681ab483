"""Reports: evaluations on held-out seeds, and what a program leaves in its folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.base import Task
from grpo.files import read_json, replacing, write_text
from grpo.reporting.curves import plot_curves
from grpo.reporting.hub import push_to_hub
from grpo.reporting.imitation import ImitationLog
from grpo.reporting.loggers import MetricsLog, read_metrics
from grpo.reporting.overview import solved_now
from grpo.reporting.progress import Bars, count, imitation_line, sparkline, success_table, time_line
from grpo.reporting.recording import record_episode, record_tally
from grpo.reporting.watch import Watch
from grpo.rollouts.agents import Agent
from grpo.rollouts.evaluation import Outcome, Success, evaluate
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.safe_output import without_passwords

if TYPE_CHECKING:
    from grpo.runtime import Runtime
    from grpo.training.trainer import Trainer, TrainingStep
    from grpo.training.warm_start import OnStep

RECORDED = 4
"""Episodes per task that are recorded to look at."""
MOST_RECORDED = 100
"""Episodes that are recorded where the tasks are many; one per task at least."""


class Report:
    """The success rates of agents in a JSON file, and recorded episodes in `media/`.

    Each rank plays its share of an evaluation; the main rank alone writes.

    Args:
        runtime: what the program runs on.
        bars: shows the progress.
        path: of the JSON file.
        program: "training" or "evaluation".
        step: training steps that a resumed run has done.
        resume: start from what the file holds.

    Attributes:
        held_out: the tasks of an evaluation.
        summary: what the file holds.
        watch: the page of the program.
        seconds: wall time by phase.
    """

    def __init__(
        self,
        runtime: Runtime,
        bars: Bars,
        path: Path,
        *,
        program: str = "evaluation",
        step: int = 0,
        resume: bool = False,
    ) -> None:
        config = runtime.config
        self.runtime, self.bars, self.console, self._path = runtime, bars, bars.console, path
        self.held_out = [
            Task(name, HELD_OUT + i)
            for i in range(config.eval_episodes)
            for name in config.evaluated_tasks
        ]
        self.summary: dict[str, Any] = read_json(path) if resume else {}
        self.summary |= {"task": ",".join(config.task), "model": runtime.policy.name}
        # A resumed run keeps the command that started it.
        self.summary.setdefault("command", command_line(sys.argv))
        self.watch = Watch(runtime, program, self.console, step)
        self.seconds: dict[str, float] = {}
        self._outcomes: dict[tuple[str, str], list[Outcome]] = {}
        self._examples: list[Task] = []

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to that of a phase."""
        started = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started

    async def evaluate(self, agents: Mapping[str, Mapping[str, Agent]]) -> None:
        """Evaluate agents side by side; add their success over the trained tasks and per task.

        Args:
            agents: by their names in the summary, and each by its ways of decoding, "sampled" and
                perhaps "greedy".
        """
        if not self.held_out:
            return
        names = ", ".join(agents)
        self.watch.begin(f"evaluating {names}", self.summary)
        config, world = self.runtime.config, self.runtime.world
        tasks = self.held_out[world.rank :: world.world_size]
        rollouts = {
            (name, decoding): Rollouts(self.runtime.pool, agent, config.max_turns)
            for name, decodings in agents.items()
            for decoding, agent in decodings.items()
        }
        total = len(tasks) * len(rollouts)
        with self.bars.bar(f"evaluate {names}", total, announced=True) as on_episode:
            try:
                own = await evaluate(rollouts, tasks, seed=config.seed, on_episode=on_episode)
            except Exception as error:
                await self.runtime.in_executor(world.tell, error)
                raise
        per_rank = await self.runtime.in_executor(world.all_gather, own)
        for name, decoding in rollouts:
            outcomes = [outcome for of_rank in per_rank for outcome in of_rank[name, decoding]]
            self._outcomes[name, decoding] = outcomes
            rate = Success.of(each for each in outcomes if each.task.name in config.task)
            self.summary.setdefault(name, {})[decoding] = rate.to_dict()
            for task in config.evaluated_tasks:
                of_task = Success.of(each for each in outcomes if each.task.name == task)
                rates = self.summary.setdefault("per_task", {}).setdefault(task, {})
                rates.setdefault(name, {})[decoding] = of_task.to_dict()
            title = f"{name}, {decoding}"
            self.console.print(f"{title:<20} success {rate.success:.2f} of {rate.n}")
        self.write()

    async def record_episodes(self, agent_name: str, label: str) -> None:
        """Play some of the policy's sampled episodes again, and keep their pages.

        Writes `media/<label>/<task>/<seed>/`.

        Args:
            agent_name: the policy's name, under which `evaluate` has evaluated it.
            label: what the episodes are filed under.
        """
        config, media = self.runtime.config, self.runtime.config.folder / "media"
        if not self.held_out or not self.runtime.world.is_main:
            return
        self.watch.begin(f"recording episodes of {agent_name}", self.summary)
        shutil.rmtree(media / label, ignore_errors=True)  # those of an earlier program
        rollouts = Rollouts(self.runtime.pool, self.runtime.decodings["sampled"], config.max_turns)
        per_task = min(RECORDED, max(1, MOST_RECORDED // len(config.evaluated_tasks)))
        examples = pick_examples(self._outcomes[agent_name, "sampled"], per_task, self._examples)
        self._examples += examples
        with self.bars.bar("record", len(examples), announced=True) as on_episode:
            await gather(
                record_episode(rollouts, task, media / label, config.seed, on_episode=on_episode)
                for task in examples
            )
        rates = {name: self.summary["per_task"][name] for name in config.evaluated_tasks}
        record_tally(media / label, {k: v[agent_name]["sampled"] for k, v in rates.items()})
        self.watch.begin("", self.summary)

    def write(self) -> None:
        """Write the JSON file."""
        if self.runtime.world.is_main:
            write_text(self._path, json.dumps(self.summary, indent=2) + "\n")


class EvaluationReport(Report):
    """The report of an evaluation: `evaluation.json`."""

    def __init__(self, runtime: Runtime, bars: Bars) -> None:
        config = runtime.config
        super().__init__(runtime, bars, config.folder / "evaluation.json")
        names = ("adapter", "seed", "max_turns", "max_new_tokens", "temperature")
        self.summary |= {name: getattr(config, name) for name in names}

    def finish(self) -> None:
        """Write the file and print the table."""
        self.summary["seconds"] = {k: round(v, 1) for k, v in self.seconds.items()}
        self.write()
        self.watch.finish(self.summary)
        self.console.print(success_table(self.summary))
        seconds = ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items())
        self.console.print(f"Seconds: {seconds}", soft_wrap=True)
        folder = self.runtime.config.folder
        self.console.print(f"\n{folder}/  evaluation.json, media/index.html", soft_wrap=True)


class TrainingReport(Report):
    """The report of a training run: `summary.json`, the metrics of every step, the curves."""

    def __init__(self, runtime: Runtime, bars: Bars, trainer: Trainer) -> None:
        """Open the files, or go on with those of the run that is resumed.

        Args:
            runtime: what the program runs on.
            bars: shows the progress.
            trainer: has loaded its checkpoint, if there is one, and has begun its run.
        """
        config, path = runtime.config, runtime.config.folder / "summary.json"
        run = trainer.saver.run
        resume = trainer.resumed and read_json(path).get("run", run) == run
        super().__init__(runtime, bars, path, program="training", step=trainer.step, resume=resume)
        self.summary["run"] = trainer.saver.run
        self.seconds = {"setup": 0.0, "eval": 0.0}
        self.failures: list[Exception] = []
        if runtime.world.is_main:
            first = trainer.step + 1 if trainer.resumed else 0
            self._log = MetricsLog(
                config.folder, keep_before_step=first, config=config, run=trainer.saver.run
            )
            text = f"# run {trainer.saver.run}\n{config.to_yaml()}"
            write_text(config.folder / "config.yaml", text)

    async def log(self, step: TrainingStep) -> None:
        """Log a training step, and show it on the page of the run."""
        if self.runtime.world.is_main:
            self._log.log(step.step, step.metrics)
            self._log.completions(step.step, step.groups, step.advantages)
            with self.timed("gallery"):
                await self.watch.step(step, self.summary)

    @contextmanager
    def imitation(self, done: int, total: int) -> Iterator[OnStep]:
        """Log a warm start, and show it on a bar; yields what is called after each update.

        Args:
            done: updates that a resumed run has done.
            total: updates in all.
        """
        config, log = self.runtime.config, None
        if self.runtime.world.is_main:
            tensorboard = config.logger == "tensorboard"
            log = ImitationLog(config.folder, self.summary["run"], done, tensorboard=tensorboard)
        with self.bars.bar("warm start: updates", total - done) as advance:

            def on_step(step: int, metrics: dict[str, float]) -> None:
                if log is not None and metrics:
                    log.log(step, metrics)
                if "imitation/held_out_loss" in metrics:
                    self.console.print(imitation_line(step, metrics), soft_wrap=True)
                if step:
                    advance()

            try:
                yield on_step
            finally:
                if log is not None:
                    log.close()
        if log is not None:
            with self.part("drawing imitation.png"), suppress(ModuleNotFoundError):
                log.draw(f"{config.task_in_words}: {config.imitation_length} of imitation")

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Do a part of what comes after the training: its failure is shown and kept.

        The parts after it are done all the same, and `finish` raises the first failure.
        """
        try:
            yield
        except Exception as error:
            self.failures.append(error)
            with suppress(OSError):  # a terminal that was closed
                reason = without_passwords(error)
                self.console.print(f"{name} failed: {reason}", soft_wrap=True)

    def finish(self, trainer: Trainer) -> None:
        """Write the summary, draw the curves, print the tables, upload the run.

        Raises:
            Exception: the first failure of what came after the training.
        """
        config, console, folder = self.runtime.config, self.console, self.runtime.config.folder
        seconds = {k: round(v, 1) for k, v in (self.seconds | trainer.seconds).items()}
        self.summary |= {"steps": trainer.step, "episodes": trainer.episodes, "seconds": seconds}
        if self.runtime.world.is_main:
            with self.part("writing summary.json"):
                self.write()
            with self.part("closing the logs"):
                self._log.close()
            with self.part("the gallery"):
                outcomes = (
                    self._outcomes.get((k, "sampled"), []) for k in ("untrained", "trained")
                )
                self.watch.finish(self.summary, solved_now(*outcomes))
            with self.part("drawing curves.png"):
                self._draw_curves(trainer)
            with self.part("the summary"):
                self._print_summary()
            if config.push_to_hub:
                with self.part("the upload"):
                    console.print(push_to_hub(folder, config.push_to_hub), soft_wrap=True)
        if self.failures:
            raise self.failures[0]

    def _draw_curves(self, trainer: Trainer) -> None:
        config, path = self.runtime.config, self.runtime.config.folder / "curves.png"
        title = (
            f"{config.task_in_words}: {count(trainer.step, 'step')}, "
            f"{count(trainer.episodes, 'episode')}"
        )
        try:
            with replacing(path) as unfinished:
                steps = read_metrics(config.folder / "metrics.jsonl")
                plot_curves(steps, unfinished, title=title, summary=self.summary)
        except ModuleNotFoundError as error:
            self.console.print(f"no curves.png: {error}", soft_wrap=True)

    def _print_summary(self) -> None:
        config, console, folder = self.runtime.config, self.console, self.runtime.config.folder
        steps = read_metrics(folder / "metrics.jsonl")
        line = sparkline(steps, ascii_only=console.options.ascii_only)
        console.print(f"\nsuccess while training  {line}\n", soft_wrap=True)
        if "per_task" in self.summary:
            console.print(success_table(self.summary))
        console.print(time_line(self.summary), soft_wrap=True)
        weights = self.runtime.policy.weights_dirname
        console.print(
            f"\n{folder}/  {weights}, curves.png, media, metrics.jsonl, summary.json",
            soft_wrap=True,
        )
        if config.logger == "tensorboard":
            logdir = shlex.quote(f"{folder}/tensorboard")
            console.print(f"tensorboard --logdir {logdir}", soft_wrap=True)


def command_line(argv: Sequence[str]) -> str:
    """Spell the command that started this program, as one would type it in this folder."""
    program = Path(argv[0])
    if program.name == "__main__.py":
        words = ["python", "-m", program.parent.name]
    elif program.suffix == ".py":
        words = ["python", os.path.relpath(program)]
    else:
        words = [program.name]
    return shlex.join([*words, *argv[1:]])


def pick_examples(
    outcomes: Sequence[Outcome], count: int, preferred: Sequence[Task] = ()
) -> list[Task]:
    """Choose up to `count` episodes per task: failures and successes in turn.

    Args:
        outcomes: of the episodes to choose from.
        count: episodes per task.
        preferred: taken before others, e.g. those that were recorded before the training.
    """
    chosen = []
    for name in dict.fromkeys(outcome.task.name for outcome in outcomes):
        of_task = [outcome for outcome in outcomes if outcome.task.name == name]
        of_task.sort(key=lambda outcome: outcome.task not in preferred)
        failed, solved = ([e.task for e in of_task if e.success is how] for how in (False, True))
        turns = [task for pair in zip_longest(failed, solved) for task in pair if task is not None]
        chosen += turns[:count]
    return chosen
