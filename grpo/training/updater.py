"""One update: a batch of rollouts -> log-probabilities -> loss -> gradient -> optimizer step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from grpo.algorithm.batch import sort_batch, split_batch
from grpo.algorithm.losses import importance_weights, policy_loss
from grpo.distributed import World
from grpo.model.device import dtype_name, out_of_memory
from grpo.model.forward import SharedPrefix
from grpo.model.policy import Policy
from grpo.training.gap import GapMonitor, mean_gap, means_and_gap, rank_metrics
from grpo.training.optimizer_state import load_optimizer
from grpo.transfer import to_host
from grpo.types import TokenBatch

if TYPE_CHECKING:
    from grpo.config import Config

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TrainingError(RuntimeError):
    """Training cannot continue: too many updates in a row had an infinite or NaN gradient."""


class Updater:
    """The optimizer, and how a batch becomes its steps.

    Attributes:
        max_tokens: budget of a micro-batch; halved for good when memory runs out.
        bad_updates: batches in a row whose gradient was not finite and was left out.
        halvings: how many times the budget was halved.
    """

    def __init__(self, config: Config, policy: Policy, world: World, decay_over: float = math.inf):
        """Make the optimizer: AdamW on the trained weights, with a linear warm-up.

        Args:
            config: the run's options.
            policy: the policy to improve.
            world: the processes among which each batch is divided.
            decay_over: updates over which the learning rate falls linearly to 0 (inf: it stays).
        """
        self.config, self.policy, self.world = config, policy, world
        self.max_tokens = config.max_tokens_per_microbatch
        self.bad_updates = self.halvings = 0
        self.optimizer = torch.optim.AdamW(  # fused: no second tensor of a weight's size
            policy.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda i: min((i + 1) / (config.warmup_steps + 1), 1 - i / decay_over)
        )

    def update(
        self, batch: TokenBatch, gap: GapMonitor | None = None, step: int = 0
    ) -> dict[str, float]:
        """Do `updates_per_batch` optimizer steps on a batch.

        A pass whose loss or gradient is not finite is left out. The passes after it would give the
        same result and are left out as well.

        Args:
            batch: this rank's rows, on the CPU; possibly none where another rank has some.
            gap: compares the generator with the policy before the first optimizer step; None not
                to, where no generator sampled the rows.
            step: number of the training step, for what `gap` says.

        Returns:
            The metrics of all passes together, over all ranks (see `grpo.training.metrics`).

        Raises:
            TrainingError: `max_bad_updates` batches in a row were not finite.
            GeneratorError: something else than the policy sampled the rows. Nothing has changed.
        """
        config, policy = self.config, self.policy
        batch = sort_batch(batch, padded=policy.forward_mode == "padded")
        if config.uses_reference:
            with policy.reference():
                batch = replace(batch, ref_logprobs=self.with_oom_retry(self.logprobs, batch))
        if config.updates_per_batch > 1:  # with a single one the ratio is 1 by definition
            batch = replace(batch, old_logprobs=self.with_oom_retry(self.logprobs, batch))
        if gap is not None:
            compute = partial(self.with_oom_retry, self.logprobs)
            batch = replace(batch, sampler_logprobs=gap.sampler_logprobs(batch, compute))

        stats: list[dict[str, Tensor]] = []
        losses: list[float] = []
        grad_norms: list[float] = []
        finite = True
        for _ in range(config.updates_per_batch):
            own = self.with_oom_retry(self.accumulate, batch)
            sums_per_rank = self.world.all_gather(own)
            sums = [part for parts in sums_per_rank for part in parts]
            self.world.all_reduce_gradients(policy.parameters())
            losses.append(sum(part.pop("loss").item() for part in sums))
            if gap is not None and not stats:
                gap.check(step, mean_gap(sums))
                gap.keep_policy()
            stats += sums
            learning_rate = self.scheduler.get_last_lr()[0]
            grad_norm = get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])
            grad_norms.append(float(grad_norm))
            if not (finite := math.isfinite(grad_norms[-1] + losses[-1])):
                break
            if config.max_grad_norm:
                clip_grads_with_norm_(policy.parameters(), config.max_grad_norm, grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            policy.copy_masters_to_model()
            policy.version += 1
        self.bad_updates = 0 if finite else self.bad_updates + 1
        if self.bad_updates >= config.max_bad_updates:
            raise TrainingError(self.diagnosis(losses[-1]))
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": sum(grad_norms) / len(grad_norms),
            "learning_rate": float(learning_rate),
            **means_and_gap(stats),
            **({} if gap is None else rank_metrics(sums_per_rank)),
            "update/skipped": float(not finite),
        }

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch, temperature: float = 0.0) -> Tensor:
        """Compute log-probabilities [N, T] of a sorted batch, on the CPU (0: the run's own)."""
        parts = self.slices(batch)
        prefix = self.policy.shared_prefix(parts)
        options: dict[str, Any] = {"temperature": temperature or self.config.temperature}
        rows = [self.policy.logprobs(part, prefix=prefix, **options).logprobs for part in parts]
        return torch.cat(rows).cpu() if rows else torch.zeros_like(batch.token_weights)

    def accumulate(self, batch: TokenBatch) -> list[dict[str, Tensor]]:
        """Set the gradient to that of the batch's loss; return one dict of sums per micro-batch."""
        self.optimizer.zero_grad()
        parts = self.slices(batch)
        prefix = self.policy.shared_prefix(parts)
        sums = [self.backward(part, prefix) for part in parts]
        if prefix:
            prefix.backward()
        return to_host(sums)

    def backward(self, batch: TokenBatch, prefix: SharedPrefix | None = None) -> dict[str, Tensor]:
        """Add a micro-batch's gradient to the parameters'; return its loss and metric sums."""
        config = self.config
        now = self.policy.logprobs(batch, temperature=config.temperature, prefix=prefix)
        batch = batch.to(self.policy.device)
        mask = batch.completion_mask
        old = now.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        level = config.importance_level
        weights, importance = importance_weights(
            old,
            batch.sampling_logprobs,
            mask,
            level="token" if level == "none" else level,
            bound=config.importance_bound,
            cap=config.importance_cap,
        )
        loss, sums = policy_loss(
            now.logprobs,
            batch.advantages,
            mask,
            batch.token_weights,
            old_logprobs=batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            importance_weights=None if level == "none" else weights,
            loss=config.loss,
            epsilon_low=config.epsilon_low,
            epsilon_high=config.epsilon_high,
            delta=config.delta or None,
            beta=config.beta,
            kl=config.kl,
        )
        loss.backward()
        # The gap of the generator alone: without the update's own steps, nor those since sampling.
        sampler = old if batch.sampler_logprobs is None else batch.sampler_logprobs
        measured = mask & ~sampler.isnan()
        versions = self.policy.version if batch.policy_versions is None else batch.policy_versions
        difference = torch.where(measured, sampler - batch.sampling_logprobs, 0.0)
        return {
            **sums,
            **importance,
            "loss": loss.detach(),
            "update/entropy": (now.entropy.detach() * mask).sum(),
            "sampling/logp_difference": difference.abs().sum(),
            "sampling/unmeasured": (mask & ~measured).sum(),
            "sampling/version": (versions * mask.sum(-1)).sum(),
        }

    def slices(self, batch: TokenBatch) -> list[TokenBatch]:
        """Cut a sorted batch into micro-batches that fit the budget, on the CPU as it is."""
        return split_batch(batch, self.max_tokens, padded=self.policy.forward_mode == "padded")

    def with_oom_retry(self, work: Callable[[TokenBatch], Result], batch: TokenBatch) -> Result:
        """Do a pass over the batch; when memory runs out, do it again with smaller micro-batches.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        while True:
            try:
                return work(batch)
            except RuntimeError as error:
                if not out_of_memory(error) or len(self.slices(batch)) == len(batch):
                    raise
            # The error is released here, and with it the stack that held the failed pass's tensors.
            self.max_tokens //= 2
            self.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning(
                "out of memory in the update: micro-batches of %d tokens from now on",
                self.max_tokens,
            )

    def diagnosis(self, loss: float) -> str:
        """Say what is not finite, and what usually causes it."""
        named = self.policy.named_parameters()
        bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
        where = f"{len(bad)} tensors, the first {bad[0]}" if bad else "none"
        dtype = dtype_name(self.policy.model.dtype)
        return (
            f"{self.bad_updates} updates in a row were not finite: loss {loss:g}, gradients that "
            f"are not finite: {where}. They were left out, so the policy is as it was before. "
            f"Usual causes: a dtype without headroom ({dtype}), a learning rate too high "
            f"({self.config.learning_rate:g})"
        )

    def state(self) -> dict[str, Any]:
        """Return the optimizer's and the schedule's state."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; see `load_optimizer` for what it raises."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
