"""Group relative policy optimization (GRPO, arXiv 2402.03300), from top to bottom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
import torch

from envs.base import EnvError, Task
from grpo.batch import make_batch, split_batch
from grpo.checkpoint import load_checkpoint, save_checkpoint
from grpo.config import Config
from grpo.generators.local import LocalGenerator
from grpo.losses import mean_stats, policy_loss
from grpo.metrics import rollout_metrics
from grpo.policy import LoRAPolicy
from grpo.roads import Trunk
from grpo.rollout import Rollouts
from grpo.tree import count_distinct
from grpo.types import Group, TokenBatch

HELD_OUT = 1_000_000
"""Training seeds are below this number, evaluation's seeds are not: they never meet."""


class Trainer:
    """Trains a policy on one task, one group a seed.

    Attributes:
        step: training steps done.
        episodes: episodes they were made of.
        seconds: wall time by phase, summed over the steps.
    """

    def __init__(
        self,
        config: Config,
        policy: LoRAPolicy,
        generator: LocalGenerator,
        rollouts: Rollouts,
        executor: Executor,
    ) -> None:
        """Set up the optimizer, and the state of the newest checkpoint if asked for.

        Args:
            config: of the run.
            policy: what is trained.
            generator: samples for the rollouts; asked for how long it was busy.
            rollouts: plays the episodes.
            executor: one thread, which does all of torch's work.
        """
        self.config, self.policy, self.generator = config, policy, generator
        self.rollouts, self.executor = rollouts, executor
        self.step = self.episodes = 0
        self.seconds = {"rollout": 0.0, "generate": 0.0, "env": 0.0, "update": 0.0}
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, weight_decay=0.0
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: min(1.0, (update + 1) / (config.warmup_steps + 1))
        )
        if config.resume:
            self.load_state(load_checkpoint(config.folder, policy))

    async def train(self) -> AsyncIterator[dict[str, float]]:
        """Roll out, compare within groups, update; until the steps or the minutes are over.

        Yields:
            The metrics of each step (see `grpo.metrics`).
        """
        config, started = self.config, time.monotonic()
        while self.step < config.steps:
            if config.minutes and time.monotonic() - started > config.minutes * 60:
                break
            try:
                groups, rollout = await self.collect(self.tasks(self.step))
            except EnvError:  # the browsers are gone for good: what was learned is not
                self.save()
                raise
            metrics = rollout_metrics(groups) | await self.in_executor(self.update, groups)
            self.step += 1
            self.episodes += sum(len(group.episodes) for group in groups)
            yield metrics | rollout | self.failures()
            if config.save_every and self.step % config.save_every == 0:
                self.save()
        self.save()

    def tasks(self, step: int) -> list[Task]:
        """The step's tasks, one a group: a function of the step, so nothing needs saving."""
        random = np.random.default_rng([self.config.seed, step])
        seeds = random.choice(HELD_OUT, self.config.groups_per_step, replace=False)
        return [Task(self.config.task, int(seed)) for seed in seeds]

    async def collect(self, tasks: Sequence[Task]) -> tuple[list[Group], dict[str, float]]:
        """Play the step's episodes."""
        started, busy = time.monotonic(), self.generator.busy_seconds
        groups = await self.rollouts.collect(
            tasks, self.config.group_size, seed=[self.config.seed, self.step]
        )
        seconds = time.monotonic() - started
        generate = self.generator.busy_seconds - busy
        return groups, self._spent(rollout=seconds, generate=generate, env=seconds - generate)

    def update(self, groups: Sequence[Group]) -> dict[str, float]:
        """Improve the policy by the policy gradient of its groups."""
        config, policy, started = self.config, self.policy, time.monotonic()
        batch = make_batch(
            groups,
            scale_rewards=config.scale_rewards,
            baseline=config.baseline,
            aggregation=config.aggregation,
            max_completion_length=config.max_steps * config.max_new_tokens,
            drop_zero_advantages=config.beta == 0,
        )
        if batch is None:  # the rewards of each group are all equal
            return {"update/skipped": 1.0, **self._spent(update=time.monotonic() - started)}
        padded = policy.road == "padded"
        parts = split_batch(batch, config.max_tokens_per_microbatch, padded=padded)
        micro_batches = [part.to(policy.device) for part in parts]
        reference: list[Any] = [None] * len(parts)
        old: list[Any] = [None] * len(parts)
        if config.beta or config.log_kl:
            with policy.reference():
                reference = self.logprobs(micro_batches)
        if config.updates_per_batch > 1:  # at a single one the ratio is 1 by definition
            old = self.logprobs(micro_batches)

        for _ in range(config.updates_per_batch):
            self.optimizer.zero_grad()
            trunk = policy.trunk(micro_batches)
            triples = zip(micro_batches, old, reference, strict=True)
            sums = [self.backward(*triple, trunk) for triple in triples]
            if trunk:
                trunk.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(
                policy.parameters(), config.max_grad_norm or float("inf")
            )
            learning_rate = self.scheduler.get_last_lr()[0]
            finite = bool(torch.isfinite(grad_norm))
            if finite:
                self.optimizer.step()
                self.scheduler.step()
                policy.version += 1
        loss = sum(part.pop("loss").item() for part in sums)
        means = mean_stats(sums)
        del means["tokens"]
        return {
            "loss": loss,
            "grad_norm": float(grad_norm),
            "learning_rate": float(learning_rate),
            **means,
            "tokens/rows": float(batch.token_mask.sum()),
            "tokens/distinct": float(count_distinct(batch.rows())),
            "update/skipped": float(not finite),
            **self._spent(update=time.monotonic() - started),
        }

    @torch.no_grad()
    def logprobs(self, micro_batches: Sequence[TokenBatch]) -> list[torch.Tensor]:
        """Log-probabilities [N, T] of each micro-batch under the policy as it is."""
        trunk = self.policy.trunk(micro_batches)
        options: dict[str, Any] = {"temperature": self.config.temperature, "trunk": trunk}
        return [self.policy.logprobs(part, **options).logprobs for part in micro_batches]

    def backward(
        self,
        batch: TokenBatch,
        old_logprobs: torch.Tensor | None,
        ref_logprobs: torch.Tensor | None,
        trunk: Trunk | None = None,
    ) -> dict[str, torch.Tensor]:
        """Add a micro-batch's gradient to the parameters'; returns its loss and metric sums."""
        config = self.config
        now = self.policy.logprobs(batch, temperature=config.temperature, trunk=trunk)
        loss, sums = policy_loss(
            now.logprobs,
            batch.advantages,
            batch.completion_mask,
            batch.token_weights,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            loss=config.loss,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            delta=config.delta or None,
            beta=config.beta,
            kl=config.kl,
        )
        loss.backward()
        mask = batch.completion_mask
        difference = now.logprobs.detach() - batch.sampling_logprobs
        return sums | {
            "loss": loss.detach(),
            "update/entropy": (now.entropy.detach() * mask).sum(),
            "sampling/logp_difference": (difference.abs() * mask).sum(),
        }

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs beside the adapter."""
        return {
            "step": self.step,
            "episodes": self.episodes,
            "version": self.policy.version,
            "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.step, self.episodes = state["step"], state["episodes"]
        self.policy.version, self.seconds = state["version"], state["seconds"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(
            self.config.folder,
            self.step,
            self.policy,
            self.state(),
            keep=self.config.keep_checkpoints,
        )

    async def in_executor(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run torch's work on its own thread; the sessions' connections stay alive meanwhile."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, partial(function, *args))

    def failures(self) -> dict[str, float]:
        """What the machinery cost so far."""
        counters = self.rollouts.counters
        return {
            "env/failures": float(counters["env_failures"]),
            "env/episodes_dropped": float(counters["episodes_dropped"]),
            "env/groups_dropped": float(counters["groups_dropped"]),
        }

    def _spent(self, **seconds: float) -> dict[str, float]:
        for phase, spent in seconds.items():
            self.seconds[phase] += spent
        return {f"seconds/{phase}": spent for phase, spent in seconds.items()}
