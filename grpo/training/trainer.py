"""Group relative policy optimization (GRPO, arXiv 2402.03300), from top to bottom."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from envs.base import EnvError
from grpo.algorithm.batch import RewardTensors, has_learning_signal, make_batch, reward_tensors
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.generators.base import Generator
from grpo.model.policy import Policy
from grpo.rollouts.rollout import OnEpisode, Rollouts, ignore_episode
from grpo.rollouts.task_sampler import TaskSampler
from grpo.shutdown import Shutdown
from grpo.training.gap import GapMonitor
from grpo.training.metrics import rollout_metrics
from grpo.training.saver import Saver
from grpo.training.updater import Updater
from grpo.tree.token_tree import count_distinct
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.config import Config

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TrainingStep(NamedTuple):
    """What one training step did.

    Attributes:
        step: its number, from 1.
        metrics: see `grpo.training.metrics`.
        groups: this rank's groups.
        advantages: [E, K] of their E episodes' turns, as the update used them.
    """

    step: int
    metrics: dict[str, float]
    groups: list[Group]
    advantages: Tensor


class Trainer:
    """Trains a policy on groups of episodes; a group is one task and seed.

    Attributes:
        step: training steps done.
        saver: writes the checkpoints and the trained weights.
        resumed: True if a checkpoint was loaded.
        is_finished: True once all steps are done.
        episodes: episodes that they were made of, of all ranks.
        warm_start: state of the warm start before the first step; {} without one.
        seconds: wall time by phase, summed over the steps and the warm start.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        generator: Generator,
        rollouts: Rollouts,
        executor: Executor,
        world: World | None = None,
        shutdown: Shutdown | None = None,
    ) -> None:
        """Set up the optimizer, and restore the newest checkpoint if the configuration says so.

        Args:
            config: the run's options.
            policy: the policy to train.
            generator: samples for the rollouts; synchronized after each update.
            rollouts: plays the episodes.
            executor: one thread, which does all of torch's work.
            world: the processes that train together; None for this one alone.
            shutdown: when to stop after the running step; None for never.
        """
        self.config, self.policy, self.generator = config, policy, generator
        self.rollouts, self.executor = rollouts, executor
        self.world, self.shutdown = world or World.single(), shutdown or Shutdown()
        self.updater = Updater(config, policy, self.world)
        self.gap = GapMonitor(config, policy, quiet=not self.world.is_main)
        self.task_sampler = TaskSampler(config.task, config.task_sampler, config.seed)
        self.credit = CreditRule(config.credit, config.discount, config.step_weight)
        self.saver = Saver(config, policy, self.world)
        self.step, self.episodes, self.warm_start = 0, 0, dict[str, Any]()
        self._counted: dict[str, int] = {}
        self.is_finished = False
        phases = ("rollout", "generate", "env", "update", "sync", "imitation")
        self.seconds = dict.fromkeys(phases, 0.0)
        self.resumed = self.saver.load(self.load_state)
        if self.world.world_size > 1:  # a single rank may be on a device without float64
            start = (self.step, sum(p.double().sum().item() for p in policy.parameters()))
            if len(set(self.world.all_gather(start))) > 1:
                raise ConfigError("the ranks start from different adapters or checkpoints")

    async def train(
        self, on_episode: OnEpisode = ignore_episode
    ) -> AsyncGenerator[TrainingStep, None]:
        """Roll out, compare within groups, update; until the steps or the minutes are over.

        Args:
            on_episode: called after each episode.

        Yields:
            Each step, which is then saved, before the generator has its policy.

        Raises:
            EnvError: the environment failed for good.
            GeneratorError: the generator failed for good, or samples from something else.
            TrainingError: the updates are not finite.
            PeerError: another rank failed.
            OSError: all steps are done, but the weights or the last checkpoint cannot be written.

        Whatever is raised, what was learned before it is saved.
        """
        config, started = self.config, time.monotonic()
        ahead: asyncio.Task[tuple[list[Group], dict[str, float]]] | None = None
        try:
            with self.shutdown.deferred():
                self.saver.begin()
                synced = self._spent(sync=0.0)
                if self.resumed:
                    synced = await self.sync()  # with the checkpoint's policy
                while not await self.is_over(started):
                    groups, rollout = await (ahead or self.collect(self.step, on_episode))
                    if config.max_staleness and self.step + 1 < config.steps:
                        ahead = asyncio.create_task(self.collect(self.step + 1, on_episode))
                    else:
                        ahead = None
                        await self.generator.sleep()
                    metrics, advantages = await self.in_executor(self.update, groups)
                    metrics |= rollout | synced | self.counters()
                    yield TrainingStep(self.step, metrics, groups, advantages)
                    if config.save_every and self.step % config.save_every == 0:
                        await self.in_executor(self.saver.save, self.step, self.state)
                    synced = await self.sync()
                self.is_finished = not self.shutdown.requested
        except (Exception, GeneratorExit) as error:
            self.saver.save(self.step, self.state)
            if not isinstance(error, GeneratorExit):
                await self.in_executor(self.world.tell, error)
            raise
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)  # its sessions are closed
        self.saver.finish(self.step, self.state, learned=self.is_finished)

    async def is_over(self, started: float) -> bool:
        """Tell whether any rank is to stop before the next step; a signal of one is one of all."""
        own = self.shutdown.received[:1], 0 < self.config.minutes * 60 < time.monotonic() - started
        ranks = await self.in_executor(self.world.all_gather, own)
        is_stopped = self.shutdown.adopt(signals for signals, _ in ranks)
        return self.step >= self.config.steps or any(late for _, late in ranks) or is_stopped

    async def sync(self) -> dict[str, float]:
        """Give the generator the policy; return the seconds that it took."""
        started = time.monotonic()
        await self.generator.sync()
        return self._spent(sync=time.monotonic() - started)

    async def collect(
        self, step: int, on_episode: OnEpisode = ignore_episode
    ) -> tuple[list[Group], dict[str, float]]:
        """Play this rank's episodes of a step.

        Groups without an advantage teach nothing: they are replaced by others, at most
        `max_resamples` times (dynamic sampling, DAPO, arXiv 2503.14476).

        Returns:
            The groups, and the seconds that they took.
        """
        config, world, count = self.config, self.world, self.config.groups_per_step
        started, busy = time.monotonic(), self.generator.busy_seconds
        groups: list[Group] = []
        for attempt in range(config.max_resamples + 1):
            missing = count - sum(has_learning_signal(group, self.credit) for group in groups)
            if not missing:
                break
            tasks = self.task_sampler.draw(step, count * world.world_size, attempt)
            try:
                groups += await self.rollouts.collect(
                    tasks[count * world.rank :][:missing],
                    config.group_size,
                    [config.seed, step],
                    first=count * (attempt * world.world_size + world.rank),
                    on_episode=on_episode,
                )
            except EnvError as error:
                if not groups:  # which ends the run, unless another rank has some
                    break
                _log.warning("step %d: no group could be replaced: %s", step + 1, error)
        seconds = time.monotonic() - started
        generate = min(seconds, self.generator.busy_seconds - busy)
        return groups, self._spent(rollout=seconds, generate=generate, env=seconds - generate)

    def update(self, groups: Sequence[Group]) -> tuple[dict[str, float], Tensor]:
        """Improve the policy by the policy gradient of the groups of all ranks.

        Returns:
            The update's metrics, and the advantages [E, K] of this rank's E episodes.

        Raises:
            EnvError: no rank has a group: the infrastructure is broken, not slow.
            GeneratorError, TrainingError: see `Updater.update`.
        """
        config, started = self.config, time.monotonic()
        played, own = self.world.all_gather_groups(groups)
        if not played:
            reason = self.rollouts.last_error
            raise EnvError(f"no group of the step survived; the last error: {reason}")
        metrics = rollout_metrics(played, self.policy.version)
        used = [True] * len(played)
        if config.max_resamples:  # groups that were replaced by others count for no average
            signal = [has_learning_signal(group, self.credit) for group in played]
            used = signal if any(signal) else used
        metrics["groups_replaced"] = float(used.count(False))

        rewards = reward_tensors(played)
        episode_used = torch.tensor(used)[rewards.group_ids]
        advantages = torch.zeros(rewards.states.shape)
        used_rewards = RewardTensors(*(tensor[episode_used] for tensor in rewards))
        advantages[episode_used] = turn_advantages(
            *used_rewards,
            self.credit,
            scale=config.scale_rewards,
            baseline=config.baseline,
        )
        batch = make_batch(
            [group for group, use in zip(played, used, strict=True) if use],
            advantages[episode_used],
            aggregation=config.aggregation,
            max_completion_length=config.max_turns * config.max_completion_tokens,
            drop_zero_advantages=config.beta == 0,
            own=[g in own for g, use in enumerate(used) if use],
        )
        if batch is None:  # no turn has an advantage
            metrics["update/skipped"] = 1.0
        else:
            version = self.policy.version
            try:
                metrics |= self.updater.update(batch, self.gap, self.step + 1)
            except Exception:
                if self.policy.version != version:  # some of its passes were done, and stay
                    self.count(played)
                raise
            metrics["tokens/rows"] = float(batch.token_mask.sum())
            metrics["tokens/distinct"] = float(count_distinct(batch.rows()))
        self.count(played)
        metrics |= self._spent(update=time.monotonic() - started)
        is_own = (rewards.group_ids >= own.start) & (rewards.group_ids < own.stop)
        return metrics, advantages[is_own]

    def count(self, played: Sequence[Group]) -> None:
        """Count a step that the policy has learned from, so that no resumed run repeats it."""
        self.step += 1
        self.episodes += sum(len(group.episodes) for group in played)
        self.task_sampler.observe(played)
        self._counted = dict(self.rollouts.counters)  # those of a step that fails are counted anew

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the policy."""
        return {
            "step": self.step,
            "groups": self.config.groups_per_step * self.world.world_size,
            "episodes": self.episodes,
            "version": self.policy.version,
            "date": self.policy.chat.date,
            "seconds": self.seconds,
            "failures": self._counted,
            "tasks": self.task_sampler.state(),
            "warm_start": {} if self.step else self.warm_start,
            **self.updater.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ConfigError: the ranks together play another number of groups per step than then.
        """
        groups = self.config.groups_per_step * self.world.world_size
        if state["groups"] != groups:
            raise ConfigError(
                f"cannot resume: a step had {state['groups']} groups over all ranks, and has "
                f"{groups} now: change groups_per_step with the number of ranks"
            )
        self.step, self.episodes = state["step"], state["episodes"]
        self.policy.version = state["version"]
        seconds = {"imitation": 0.0} | state["seconds"]  # new in version 0.3
        self.seconds = {phase: float(seconds[phase]) for phase in self.seconds}
        date.fromisoformat(state["date"])  # raises what is none
        self.policy.chat.date = state["date"]  # a prompt after midnight is the one before
        self.rollouts.counters.update({k: int(count) for k, count in state["failures"].items()})
        self._counted = dict(self.rollouts.counters)
        self.task_sampler.load_state(state["tasks"])
        self.warm_start = dict(state.get("warm_start", {}))  # new in version 0.3
        self.updater.load_state(state)

    async def in_executor(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run torch's work on its own thread, so that the sessions' connections stay alive."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, partial(function, *args))

    def counters(self) -> dict[str, float]:
        """Return the metrics of what failed and what was shared so far, on this rank."""
        counters, shared = self.rollouts.counters, self.rollouts.pool.counters
        return {f"env/{name}": float(count) for name, count in shared.items()} | {
            "env/failures": float(counters["env_failures"]),
            "env/episodes_dropped": float(counters["episodes_dropped"]),
            "env/groups_dropped": float(counters["groups_dropped"]),
            "update/memory_halvings": float(self.updater.halvings),
            "checkpoint/failures": float(self.saver.failures),
        }

    def _spent(self, **seconds: float) -> dict[str, float]:
        for phase, spent in seconds.items():
            self.seconds[phase] += spent
        return {f"seconds/{phase}": spent for phase, spent in seconds.items()}
