"""A whole run: evaluate, train, evaluate again, and leave what there is to see."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from envs.base import EnvError, TaskError
from grpo.config import Config, ConfigError
from grpo.distributed import World
from grpo.generators.base import GeneratorError
from grpo.reporting.hub import check_access, push_to_hub
from grpo.reporting.loggers import MetricsLog, read_metrics
from grpo.reporting.progress import plot_curves, sparkline, step_line, success_table, time_line
from grpo.reporting.report import Report
from grpo.rollouts.evaluation import blind, random_agent
from grpo.rollouts.rollout import Act, Rollouts
from grpo.runtime import OpenPool, Runtime, open_runtime
from grpo.shutdown import Stopped
from grpo.training.trainer import Trainer
from grpo.training.updater import TrainingError
from grpo.training.warm_start import imitate
from grpo.types import Group

FAILURES = (EnvError, GeneratorError, TrainingError, OSError)


async def run(
    config: Config,
    open_pool: OpenPool,
    baselines: Mapping[str, Act] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Evaluate, train, evaluate again.

    Args:
        config: of the run.
        open_pool: the environment.
        baselines: policies to evaluate beside the random one.
        world: the processes that train together; None for this one alone.

    Returns:
        What `summary.json` holds: success of every policy, over all tasks and of each.
    """
    started = time.monotonic()
    if config.push_to_hub and (world is None or world.is_main):
        check_access(config.push_to_hub)
    async with open_runtime(config, open_pool, world) as parts:
        ways, bars, console = parts.ways, parts.bars, parts.console
        rollouts = Rollouts(
            parts.pool, ways["sampled"], config.max_turns, config.valid_action_bonus
        )
        trainer = Trainer(
            config, parts.policy, parts.generator, rollouts, parts.executor, parts.world
        )
        parts.stop.ask = trainer.stop
        record = TrainingReport(parts, trainer.step)
        if trainer.step:
            console.print(f"going on from step {trainer.step}")
        else:
            with record.timed("eval"):
                for who, act in {"random": random_agent, **(baselines or {})}.items():
                    await record.examine(who, {"sampled": act})
                await record.examine("untrained", ways)
                await record.pictures("untrained", "before")
            if config.warm_start_steps:
                with bars.bar("imitate: steps", config.warm_start_steps) as advance:
                    demonstrations = await imitate(parts, advance)
                console.print(f"imitated {demonstrations} demonstrations")
                await parts.generator.sync()
                with record.timed("eval"):
                    await record.examine("warm_started", ways)
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
        if parts.stop.received:
            raise Stopped(parts.stop.received[0])  # the step is done, its checkpoint written

        with record.timed("eval"):
            if config.blind:
                await record.examine("blind", {way: blind(act) for way, act in ways.items()})
            await record.examine("trained", ways)
            await record.pictures("trained", "after")
    return record.finish(trainer)


class TrainingReport(Report):
    """What a run leaves in its folder: beside its report the metrics of every step."""

    def __init__(self, parts: Runtime, step: int) -> None:
        config, path = parts.config, parts.config.folder / "summary.json"
        super().__init__(parts, path, resume=bool(step) and path.is_file())
        self.seconds = {"setup": 0.0, "eval": 0.0}
        if parts.world.is_main:
            self._log = MetricsLog(config.folder, keep_before_step=step + 1, config=config)
            (config.folder / "config.yaml").write_text(config.to_yaml())

    def step(self, step: int, metrics: dict[str, float], groups: Sequence[Group]) -> None:
        """Log a training step."""
        if self.runtime.world.is_main:
            self._log.log(step, metrics)
            self._log.completions(step, groups)

    def finish(self, trainer: Trainer) -> dict[str, Any]:
        """Save what was learned, draw the curves, print the summary; returns it."""
        config, console = self.runtime.config, self.runtime.console
        seconds = {k: round(v, 1) for k, v in (self.seconds | trainer.seconds).items()}
        self.summary |= {"steps": trainer.step, "episodes": trainer.episodes, "seconds": seconds}
        if not self.runtime.world.is_main:
            return self.summary
        self._log.close()
        folder, policy = config.folder, self.runtime.policy
        policy.save(folder / policy.weights_dirname)
        policy.tokenizer.save_pretrained(folder / policy.weights_dirname)
        self.write()
        steps = read_metrics(folder / "metrics.jsonl")
        title = f"{config.task}: {trainer.step} steps, {trainer.episodes} episodes"
        plot_curves(steps, folder / "curves.png", title=title)
        console.print(f"\nsuccess while training  {sparkline(steps)}\n", soft_wrap=True)
        if "per_task" in self.summary:
            console.print(success_table(self.summary))
        console.print(time_line(self.summary), soft_wrap=True)
        console.print(
            f"\n{folder}/  {policy.weights_dirname}, curves.png, media, metrics.jsonl, summary.json"
        )
        if config.logger == "tensorboard":
            console.print(f"tensorboard --logdir {folder}/tensorboard")
        if config.push_to_hub:
            console.print(push_to_hub(folder, config.push_to_hub))
        return self.summary


Program = Callable[
    [Config, OpenPool, Mapping[str, Act] | None, World | None], Coroutine[Any, Any, object]
]


def main(
    read_config: Callable[[], Config],
    open_pool: OpenPool,
    baselines: Mapping[str, Act] | None = None,
    program: Program = run,
) -> int:
    """Run a program's whole life: one line for an error, the exit code that a shell expects.

    Args:
        read_config: called first; what is wrong with it is told like any other mistake.
        open_pool: the environment.
        baselines: policies to evaluate beside the random one, e.g. an oracle.
        program: what is run.

    Returns:
        0; 2 if what was asked for cannot be done, 1 if the machinery fails (what was learned is
        saved), 128 and the signal's number if one ended it.
    """
    try:
        config, world = read_config(), World()
        asyncio.run(program(config, open_pool, baselines, world))
        world.close()
    except Stopped as stopped:
        hint = "; ARGS=--resume goes on" if program is run else ""
        print(f"{stopped}{hint}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(stopped.exit_code)  # at once: torch's thread may be in an update nobody waits for
    except KeyboardInterrupt:  # while the model was loading: there is nothing to save
        return 130
    except (ConfigError, TaskError, *FAILURES) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FAILURES) else 2
    return 0
