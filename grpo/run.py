"""A whole run: evaluate, train, evaluate again, and leave what there is to see."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console

from envs.base import EnvError, Task, TaskError
from envs.pool import EnvPool
from grpo.base_policy import Policy
from grpo.config import Config, ConfigError
from grpo.display import Bars, plot_curves, sparkline, step_line, success_table, time_line
from grpo.evaluate import Outcome, Success, blind, evaluate, random_policy, record_episode
from grpo.generators import open_generator
from grpo.generators.base import GeneratorError
from grpo.hub import check_access, push_to_hub
from grpo.imitation import imitate
from grpo.loggers import MetricsLog, read_metrics
from grpo.models import load_policy
from grpo.ranks import Ranks
from grpo.rollout import Act, Rollouts, sampled_by
from grpo.stopping import OrderlyStop, Stopped
from grpo.tasks import HELD_OUT
from grpo.trainer import Trainer
from grpo.types import Group
from grpo.update import TrainingError

FAILURES = (EnvError, GeneratorError, TrainingError, OSError)

OpenPool = Callable[[Config, int], AbstractAsyncContextManager[EnvPool]]
"""`(config, rank)` -> a pool of the environment's sessions, e.g. `envs.sessions.browser_pool`."""


def main(
    read_config: Callable[[], Config],
    open_pool: OpenPool,
    baselines: Mapping[str, Act] | None = None,
) -> int:
    """Run a program's whole life: one line for an error, the exit code that a shell expects.

    Args:
        read_config: called first; what is wrong with it is told like any other mistake.
        open_pool: the environment.
        baselines: policies to evaluate beside the random one, e.g. an oracle.

    Returns:
        0; 2 if what was asked for cannot be done, 1 if the machinery fails (what was learned is
        saved), 128 and the signal's number if one ended it.
    """
    try:
        config, ranks = read_config(), Ranks()
        asyncio.run(run(config, open_pool, baselines, ranks))
        ranks.close()
    except Stopped as stopped:
        print(f"{stopped}; ARGS=--resume goes on", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(stopped.exit_code)  # at once: torch's thread may be in an update nobody waits for
    except KeyboardInterrupt:  # while the model was loading: there is nothing to save
        return 130
    except (ConfigError, TaskError, *FAILURES) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FAILURES) else 2
    return 0


async def run(
    config: Config,
    open_pool: OpenPool,
    baselines: Mapping[str, Act] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Evaluate, train, evaluate again.

    Args:
        config: of the run.
        open_pool: the environment.
        baselines: policies to evaluate beside the random one.
        ranks: the processes that train together; None for this one alone.

    Returns:
        What `summary.json` holds: success of every policy, over all tasks and of each.
    """
    started, ranks = time.monotonic(), ranks or Ranks({})
    console = Console(highlight=False, quiet=not ranks.leads)
    if config.push_to_hub and ranks.leads:
        check_access(config.push_to_hub)
    console.print(f"[bold]{', '.join(config.tasks)}[/]  loading the model")
    policy = load_policy(config)
    # One thread for all of torch's work: the event loop stays free for the browsers.
    executor = ThreadPoolExecutor(1, thread_name_prefix="torch")
    async with (
        OrderlyStop() as stop,
        open_generator(config, policy, executor, ranks) as generator,
        open_pool(config, ranks.rank) as pool,
    ):
        limit = policy.max_length - config.max_new_tokens
        ways = {
            way: sampled_by(
                generator,
                policy.tokenizer,
                temperature=temperature,
                max_prompt_tokens=min(limit, config.max_prompt_tokens or limit),
            )
            for way, temperature in (("sampled", config.temperature), ("greedy", 0.0))
        }
        rollouts = Rollouts(pool, ways["sampled"], config.max_steps, config.valid_action_bonus)
        trainer = Trainer(config, policy, generator, rollouts, executor, ranks)
        stop.ask = trainer.stop
        bars, record = Bars(console), Record(config, ranks.leads, trainer.step)
        record.summary |= {"task": config.task, "model": policy.name}
        held_out = [
            Task(name, HELD_OUT + i)
            for i in range(config.eval_episodes)
            for name in config.evaluated_tasks
        ]

        async def examine(who: str, ways: Mapping[str, Act]) -> None:
            """Evaluate on the held-out seeds, each rank on its share."""
            if not held_out:
                return
            tasks = held_out[ranks.rank :: ranks.size]
            with bars.bar(f"evaluate {who}", len(tasks) * len(ways)) as advance:
                plays = {
                    way: Rollouts(pool, act, config.max_steps, on_episode=advance)
                    for way, act in ways.items()
                }
                own = await evaluate(plays, tasks, seed=config.seed)
            everyone = await trainer.in_executor(ranks.gather, own)
            for way in ways:
                outcomes = [outcome for part in everyone for outcome in part[way]]
                rate = record.success(who, way, outcomes)
                console.print(f"{f'{who}, {way}':<20} success {rate.success:.2f} of {rate.n}")

        async def pictures(when: str) -> None:
            for task in held_out[: len(config.evaluated_tasks)] if ranks.leads else ():
                folder = config.folder / "media" / when / task.name
                await record_episode(rollouts, task, folder, seed=config.seed)

        if trainer.step:
            console.print(f"going on from step {trainer.step}")
        else:
            with record.timed("eval"):
                for who, act in {"random": random_policy, **(baselines or {})}.items():
                    await examine(who, {"sampled": act})
                await examine("untrained", ways)
                await pictures("before")
            if config.warm_start_steps:
                with bars.bar("imitate: steps", config.warm_start_steps) as advance:
                    demonstrations = await imitate(config, policy, pool, executor, ranks, advance)
                console.print(f"imitated {demonstrations} demonstrations")
                await generator.sync()
                with record.timed("eval"):
                    await examine("warm_started", ways)
        record.seconds["setup"] = time.monotonic() - started - record.seconds["eval"]

        per_step = config.groups_per_step * config.group_size
        with (
            bars.bar("train: steps", config.steps - trainer.step) as advance,
            bars.bar("  rollouts of the step", per_step) as rollouts.on_episode,
        ):
            async for metrics in trainer.train():
                record.step(trainer.step, metrics, trainer.groups)
                console.print(step_line(trainer.step, metrics), soft_wrap=True)
                advance()
                rollouts.on_episode.reset()
        if stop.received:
            raise Stopped(stop.received[0])  # the step is done, its checkpoint written
        rollouts.on_episode = lambda _: None

        with record.timed("eval"):
            if config.blind:
                await examine("blind", {way: blind(act) for way, act in ways.items()})
            await examine("trained", ways)
            await pictures("after")
    executor.shutdown()
    return record.finish(policy, trainer, console)


class Record:
    """What a run leaves in its folder; written by the leading rank alone.

    Attributes:
        summary: what `summary.json` holds; an earlier part of a resumed run's, to begin with.
        seconds: wall time by phase, beside the trainer's.
    """

    def __init__(self, config: Config, leads: bool, step: int) -> None:
        self._config, self._leads = config, leads
        self._path = config.folder / "summary.json"
        self.summary: dict[str, Any] = {}
        self.seconds = {"setup": 0.0, "eval": 0.0}
        if step and self._path.is_file():
            self.summary = json.loads(self._path.read_text())
        if leads:
            self._log = MetricsLog(config.folder, keep_before_step=step + 1, config=config)
            (config.folder / "config.yaml").write_text(config.to_yaml())

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to a phase's."""
        started = time.monotonic()
        yield
        self.seconds[phase] += time.monotonic() - started

    def step(self, step: int, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        """Log a training step."""
        if self._leads:
            self._log.log(step, metrics)
            self._log.completions(step, groups)

    def success(self, who: str, way: str, outcomes: Sequence[Outcome]) -> Success:
        """Note the success over the trained tasks, which is returned, and of each task."""
        rate = Success.of(outcome for outcome in outcomes if outcome.task in self._config.tasks)
        self.summary.setdefault(who, {})[way] = asdict(rate)
        for name in self._config.evaluated_tasks:
            of_task = Success.of(outcome for outcome in outcomes if outcome.task == name)
            rates = self.summary.setdefault("per_task", {}).setdefault(name, {})
            rates.setdefault(who, {})[way] = asdict(of_task)
        self.write()
        return rate

    def write(self) -> None:
        """Write `summary.json`."""
        if self._leads:
            self._path.write_text(json.dumps(self.summary, indent=2) + "\n")

    def finish(self, policy: Policy, trainer: Trainer, console: Console) -> dict[str, Any]:
        """Save what was learned, draw the curves, print the summary; returns it."""
        seconds = {k: round(v, 1) for k, v in (self.seconds | trainer.seconds).items()}
        self.summary |= {"steps": trainer.step, "episodes": trainer.episodes, "seconds": seconds}
        if not self._leads:
            return self.summary
        self._log.close()
        folder = self._config.folder
        weights = folder / policy.saved_as
        policy.save(weights)
        policy.tokenizer.save_pretrained(weights)
        self.write()
        steps = read_metrics(folder / "metrics.jsonl")
        title = f"{self._config.task}: {trainer.step} steps, {trainer.episodes} episodes"
        plot_curves(steps, folder / "curves.png", title=title)
        console.print(f"\nsuccess while training  {sparkline(steps)}\n", soft_wrap=True)
        if "per_task" in self.summary:
            console.print(success_table(self.summary))
        console.print(time_line(self.summary), soft_wrap=True)
        console.print(
            f"\n{folder}/  {policy.saved_as}, curves.png, media, metrics.jsonl, summary.json"
        )
        if self._config.logger == "tensorboard":
            console.print(f"tensorboard --logdir {folder}/tensorboard")
        if self._config.push_to_hub:
            console.print(push_to_hub(folder, self._config.push_to_hub))
        return self.summary
