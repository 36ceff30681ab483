"""Policies on the held-out seeds: what a run does before and after, and a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from envs.base import Task
from grpo.config import Config, ConfigError
from grpo.distributed import World
from grpo.reporting.gallery import record_episode, write_gallery
from grpo.reporting.progress import success_table
from grpo.rollouts.evaluation import Outcome, Success, blind, evaluate, random_agent
from grpo.rollouts.rollout import Act, Rollouts, gather
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.runtime import OpenPool, Runtime, open_runtime

RECORDED = 4
"""Episodes of each task that are kept to look at."""


class Report:
    """What a program finds out: a JSON file, and episodes to look at in `media/`.

    Each rank plays its share of an evaluation; the leading one alone writes.

    Args:
        parts: of the program.
        path: of the JSON file.
        resume: go on from what the file holds.

    Attributes:
        held_out: the tasks of an evaluation.
        summary: what the file holds.
        seconds: wall time by phase.
    """

    def __init__(self, parts: Runtime, path: Path, *, resume: bool = False) -> None:
        config = parts.config
        self.runtime, self._path = parts, path
        self.held_out = [
            Task(name, HELD_OUT + i)
            for i in range(config.eval_episodes)
            for name in config.evaluated_tasks
        ]
        self.summary: dict[str, Any] = json.loads(path.read_text()) if resume else {}
        self.summary |= {"task": config.task, "model": parts.policy.name}
        # A resumed run is still the one that its first command began.
        self.summary.setdefault(
            "command", shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])
        )
        self.seconds: dict[str, float] = {}
        self._outcomes: dict[tuple[str, str], list[Outcome]] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to a phase's."""
        started = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - started

    async def examine(self, who: str, ways: Mapping[str, Act]) -> None:
        """Evaluate a policy: its success over the trained tasks, and of each task, is summed up.

        Args:
            who: its name in the summary.
            ways: its ways to answer.
        """
        if not self.held_out:
            return
        config, world, console = self.runtime.config, self.runtime.world, self.runtime.console
        tasks = self.held_out[world.rank :: world.world_size]
        with self.runtime.bars.bar(f"evaluate {who}", len(tasks) * len(ways)) as advance:
            plays = {
                way: Rollouts(self.runtime.pool, act, config.max_turns, on_episode=advance)
                for way, act in ways.items()
            }
            own = await evaluate(plays, tasks, seed=config.seed)
        loop = asyncio.get_running_loop()
        everyone = await loop.run_in_executor(self.runtime.executor, world.all_gather, own)
        for way in ways:
            outcomes = [outcome for part in everyone for outcome in part[way]]
            self._outcomes[who, way] = outcomes
            rate = Success.of(each for each in outcomes if each.task.name in config.tasks)
            self.summary.setdefault(who, {})[way] = asdict(rate)
            for name in config.evaluated_tasks:
                of_task = Success.of(each for each in outcomes if each.task.name == name)
                rates = self.summary.setdefault("per_task", {}).setdefault(name, {})
                rates.setdefault(who, {})[way] = asdict(of_task)
            console.print(f"{f'{who}, {way}':<20} success {rate.success:.2f} of {rate.n}")
        self.write()

    async def pictures(self, who: str, when: str) -> None:
        """Play some of a policy's sampled episodes again, and keep their pages and answers.

        Writes `media/<when>/<task>/<seed>/` and `media/index.html`.

        Args:
            who: a policy that `examine` evaluated, as it is now.
            when: what the episodes are filed under.
        """
        config, media = self.runtime.config, self.runtime.config.folder / "media"
        if not self.held_out or not self.runtime.world.is_main:
            return
        shutil.rmtree(media / when, ignore_errors=True)  # an earlier program's
        rollouts = Rollouts(self.runtime.pool, self.runtime.ways["sampled"], config.max_turns)
        await gather(
            record_episode(rollouts, task, media / when, seed=config.seed)
            for task in pick_examples(self._outcomes[who, "sampled"], RECORDED)
        )
        write_gallery(media, title=f"{config.task}, {self.summary['model']}")

    def write(self) -> None:
        """Write the JSON file."""
        if self.runtime.world.is_main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.summary, indent=2) + "\n")


def pick_examples(outcomes: Sequence[Outcome], count: int) -> list[Task]:
    """Choose up to `count` episodes of each task: failures and successes in turn."""
    chosen = []
    for name in dict.fromkeys(outcome.task.name for outcome in outcomes):
        of_task = [outcome for outcome in outcomes if outcome.task.name == name]
        failed, solved = ([e.task for e in of_task if e.success is how] for how in (False, True))
        turns = [task for pair in zip_longest(failed, solved) for task in pair if task is not None]
        chosen += turns[:count]
    return chosen


async def examine(
    config: Config,
    open_pool: OpenPool,
    baselines: Mapping[str, Act] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Evaluate a policy beside the random and the blind one, and keep some of its episodes.

    Args:
        config: of the policy, the tasks and the environment.
        open_pool: the environment.
        baselines: policies to evaluate beside the random one.
        world: the processes that evaluate together; None for this one alone.

    Returns:
        What `evaluation.json` holds: success of every policy, over all tasks and of each.

    Raises:
        ConfigError: there is nothing to evaluate, or what is asked for cannot be done.
    """
    if not config.eval_episodes:
        raise ConfigError("eval_episodes must be at least 1 to evaluate, got 0")
    started = time.monotonic()
    async with open_runtime(config, open_pool, world) as parts:
        report = Report(parts, config.folder / "evaluation.json")
        report.seconds["setup"] = time.monotonic() - started
        names = ("adapter", "seed", "max_turns", "max_new_tokens", "temperature")
        report.summary |= {name: getattr(config, name) for name in names}
        policies: dict[str, Mapping[str, Act]] = {"random": {"sampled": random_agent}}
        policies |= {who: {"sampled": act} for who, act in (baselines or {}).items()}
        if config.blind:
            policies["blind"] = {way: blind(act) for way, act in parts.ways.items()}
        policies["policy"] = parts.ways
        for who, ways in policies.items():
            with report.timed(who):
                await report.examine(who, ways)
        with report.timed("media"):
            await report.pictures("policy", "evaluation")
    report.summary["seconds"] = {k: round(v, 1) for k, v in report.seconds.items()}
    report.write()
    parts.console.print(success_table(report.summary))
    seconds = ", ".join(f"{k} {v:.0f}" for k, v in report.seconds.items())
    parts.console.print(f"Seconds: {seconds}", soft_wrap=True)
    parts.console.print(f"\n{config.folder}/  evaluation.json, media/index.html")
    return report.summary
