"""Group relative policy optimization (GRPO, arXiv 2402.03300), from top to bottom."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import torch

from envs.base import EnvError
from grpo.algorithm.batch import has_learning_signal, make_batch
from grpo.config import Config, ConfigError
from grpo.distributed import World
from grpo.generators.base import Generator, GeneratorError
from grpo.model.policy import Policy
from grpo.rollouts.rollout import Rollouts
from grpo.rollouts.task_sampler import TaskSampler
from grpo.training.checkpoint import load_checkpoint, save_checkpoint
from grpo.training.metrics import rollout_metrics
from grpo.training.updater import TrainingError, Updater
from grpo.tree.token_tree import count_distinct
from grpo.types import Group

_log = logging.getLogger(__name__)


class Trainer:
    """Trains a policy on groups of episodes, one group a task and seed.

    Attributes:
        step: training steps done.
        episodes: episodes they were made of, of all ranks.
        groups: this rank's of the newest step.
        seconds: wall time by phase, summed over the steps.
        running: True while `train` is at work.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        generator: Generator,
        rollouts: Rollouts,
        executor: Executor,
        world: World | None = None,
    ) -> None:
        """Set up the optimizer, and the state of the newest checkpoint if asked for.

        Args:
            config: of the run.
            policy: what is trained.
            generator: samples for the rollouts; told of each update.
            rollouts: plays the episodes.
            executor: one thread, which does all of torch's work.
            world: the processes that train together; None for this one alone.
        """
        self.config, self.policy, self.generator = config, policy, generator
        self.rollouts, self.executor, self.world = rollouts, executor, world or World.single()
        self.updater = Updater(config, policy, self.world)
        self.sampler = TaskSampler(config.tasks, config.task_sampler, config.seed)
        self.step = self.episodes = self.failed_saves = 0
        self.groups: list[Group] = []
        self.running = self._stopping = False
        self.seconds = {"rollout": 0.0, "generate": 0.0, "env": 0.0, "update": 0.0, "sync": 0.0}
        if config.resume and (state := load_checkpoint(config, policy)):
            self.load_state(state)
        start = (self.step, sum(p.double().sum().item() for p in policy.parameters()))
        if len(set(self.world.all_gather(start))) > 1:
            raise ConfigError("the ranks start from different adapters or checkpoints")

    async def train(self) -> AsyncIterator[dict[str, float]]:
        """Roll out, compare within groups, update; until the steps or the minutes are over.

        Yields:
            The metrics of each step (see `grpo.training.metrics`).

        Raises:
            EnvError: the browsers are gone for good. What was learned is saved, here and below.
            GeneratorError: the sampler is.
            TrainingError: the updates are not finite.
        """
        config, started, self.running = self.config, time.monotonic(), True
        ahead: asyncio.Task[tuple[list[Group], dict[str, float]]] | None = None
        try:
            if self.step:
                await self.generator.sync()  # with the checkpoint's policy
            while not await self.is_over(started):
                self.groups, rollout = await (ahead or self.collect(self.step))
                if config.max_staleness and self.step + 1 < config.steps:
                    ahead = asyncio.create_task(self.collect(self.step + 1))
                else:
                    ahead = None
                    await self.generator.sleep()
                metrics = await self.in_executor(self.update, self.groups)
                done = time.monotonic()
                await self.generator.sync()
                metrics |= self._spent(sync=time.monotonic() - done)
                self.step += 1
                yield metrics | rollout | self.failures()
                if config.save_every and self.step % config.save_every == 0:
                    self.save()
        except (EnvError, GeneratorError, TrainingError):
            self.save()
            raise
        finally:
            self.running = False
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)  # its sessions are closed
        self.save(last=True)

    def stop(self) -> bool:
        """Ask for an end after the step that runs; False if none does, and none will."""
        self._stopping = True
        return self.running

    async def is_over(self, started: float) -> bool:
        """Whether any rank is to stop before the next step."""
        late = self.config.minutes and time.monotonic() - started > self.config.minutes * 60
        together = await self.in_executor(self.world.all_gather, self._stopping or bool(late))
        return self.step >= self.config.steps or any(together)

    async def collect(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Play this rank's episodes of a step; returns its groups and what they cost.

        Groups without an advantage teach nothing: they are replaced by others, at most
        `max_resamples` times (dynamic sampling, DAPO, arXiv 2503.14476).
        """
        config, world, count = self.config, self.world, self.config.groups_per_step
        started, busy = time.monotonic(), self.generator.busy_seconds
        groups: list[Group] = []
        for attempt in range(config.max_resamples + 1):
            missing = count - sum(
                has_learning_signal(group, config.credit_rule) for group in groups
            )
            if not missing:
                break
            tasks = self.sampler.draw(step, count * world.world_size, attempt)
            own = tasks[count * world.rank :][:missing]
            first = count * (attempt * world.world_size + world.rank)
            groups += await self.rollouts.collect(
                own, config.group_size, [config.seed, step], first=first
            )
        seconds = time.monotonic() - started
        generate = min(seconds, self.generator.busy_seconds - busy)
        return groups, self._spent(rollout=seconds, generate=generate, env=seconds - generate)

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Improve the policy by the policy gradient of the groups of all ranks."""
        config, started = self.config, time.monotonic()
        played, own = self.world.all_gather_groups(groups)
        self.sampler.observe(played)
        self.episodes += sum(len(group.episodes) for group in played)
        metrics = rollout_metrics(played, self.policy.version)
        taught = [
            i for i, group in enumerate(played) if has_learning_signal(group, config.credit_rule)
        ]
        if not config.max_resamples or not taught:
            taught = list(range(len(played)))
        metrics["groups_replaced"] = float(len(played) - len(taught))
        batch = make_batch(
            [played[i] for i in taught],
            scale_rewards=config.scale_rewards,
            baseline=config.baseline,
            credit=config.credit_rule,
            aggregation=config.aggregation,
            max_completion_length=config.max_turns * config.max_new_tokens,
            drop_zero_advantages=config.beta == 0,
            own=[i in own for i in taught],
        )
        if batch is None:  # no turn has an advantage
            metrics["update/skipped"] = 1.0
        else:
            metrics |= self.updater.update(batch)
            metrics["tokens/rows"] = float(batch.token_mask.sum())
            metrics["tokens/distinct"] = float(count_distinct(batch.rows()))
        return metrics | self._spent(update=time.monotonic() - started)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs beside the adapter."""
        return {
            "step": self.step,
            "groups": self.config.groups_per_step * self.world.world_size,
            "episodes": self.episodes,
            "version": self.policy.version,
            "seconds": self.seconds,
            "failures": dict(self.rollouts.counters),
            "tasks": self.sampler.state(),
            "random": torch.get_rng_state(),
            **self.updater.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ConfigError: the ranks together do not play as many groups a step as then.
        """
        groups = self.config.groups_per_step * self.world.world_size
        if state["groups"] != groups:
            raise ConfigError(
                f"cannot resume: a step was of {state['groups']} groups over all ranks, and is of "
                f"{groups}: change groups_per_step with the number of ranks"
            )
        self.step, self.episodes = state["step"], state["episodes"]
        self.policy.version, self.seconds = state["version"], state["seconds"]
        self.rollouts.counters.update(state["failures"])
        self.sampler.load_state(state["tasks"])
        torch.set_rng_state(state["random"])
        self.updater.load_state(state)

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint, on the rank that leads.

        A disk that is full costs this checkpoint and not the run: the older ones stay.

        Args:
            last: True to raise the disk's OSError instead of going on.
        """
        if not self.world.is_main:
            return
        try:
            save_checkpoint(self.config, self.step, self.policy, self.state())
        except OSError as error:
            self.failed_saves += 1
            if last:
                raise
            _log.warning("the checkpoint of step %d could not be saved: %s", self.step, error)

    async def in_executor(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run torch's work on its own thread; the sessions' connections stay alive meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, partial(function, *args))

    def failures(self) -> dict[str, float]:
        """What the machinery cost so far, on this rank."""
        counters = self.rollouts.counters
        return {
            "env/failures": float(counters["env_failures"]),
            "env/episodes_dropped": float(counters["episodes_dropped"]),
            "env/groups_dropped": float(counters["groups_dropped"]),
            "update/memory_halvings": float(self.updater.halvings),
            "checkpoint/failures": float(self.failed_saves),
        }

    def _spent(self, **seconds: float) -> dict[str, float]:
        for phase, spent in seconds.items():
            self.seconds[phase] += spent
        return {f"seconds/{phase}": spent for phase, spent in seconds.items()}
