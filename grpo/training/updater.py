"""One update: a batch of rollouts -> log-probabilities -> loss -> gradient -> optimizer step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from grpo.algorithm.batch import sort_batch, split_batch
from grpo.algorithm.losses import importance_weights, mean_stats, policy_loss
from grpo.config import Config
from grpo.distributed import World
from grpo.model.forward import SharedPrefix
from grpo.model.policy import Policy
from grpo.types import TokenBatch

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class TrainingError(RuntimeError):
    """Training cannot go on: the updates came out infinite or NaN, one after the other."""


class Updater:
    """The optimizer, and how a batch becomes its steps.

    Attributes:
        max_tokens: budget of a micro-batch; halved for good when memory has run out.
        bad_updates: updates in a row that were not finite and were left out.
    """

    def __init__(self, config: Config, policy: Policy, world: World) -> None:
        """Make the optimizer: AdamW on what is trained, a linear warm-up.

        Args:
            config: of the run.
            policy: what is improved.
            world: who else has a part of each batch.
        """
        self.config, self.policy, self.world = config, policy, world
        self.max_tokens = config.max_tokens_per_microbatch
        self.bad_updates = self.halvings = 0
        self.optimizer = torch.optim.AdamW(  # fused: no second tensor of a weight's size
            policy.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: min(1.0, (update + 1) / (config.warmup_steps + 1))
        )

    def update(self, batch: TokenBatch) -> dict[str, float]:
        """Do `updates_per_batch` optimizer steps on a batch.

        Args:
            batch: this rank's rows, on the CPU; none is fine where another rank has some.

        Returns:
            The update's metrics, over all ranks (see `grpo.training.metrics`).

        Raises:
            TrainingError: the gradient was not finite `max_bad_updates` times in a row.
        """
        config, policy = self.config, self.policy
        batch = sort_batch(batch)
        if config.uses_reference:
            with policy.reference():
                batch = replace(batch, ref_logprobs=self.with_oom_retry(self.logprobs, batch))
        if config.updates_per_batch > 1:  # at a single one the ratio is 1 by definition
            batch = replace(batch, old_logprobs=self.with_oom_retry(self.logprobs, batch))

        for _ in range(config.updates_per_batch):
            own = self.with_oom_retry(self.accumulate, batch)
            sums = [part for parts in self.world.all_gather(own) for part in parts]
            self.world.all_reduce_gradients(policy.parameters())
            loss = sum(part.pop("loss").item() for part in sums)
            learning_rate = self.scheduler.get_last_lr()[0]
            grad_norm = get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])
            finite = bool(torch.isfinite(grad_norm + loss))
            if finite:
                if config.max_grad_norm:
                    clip_grads_with_norm_(policy.parameters(), config.max_grad_norm, grad_norm)
                self.optimizer.step()
                self.scheduler.step()
                policy.copy_masters_to_model()
                policy.version += 1
            self.bad_updates = 0 if finite else self.bad_updates + 1
        if self.bad_updates >= config.max_bad_updates:
            raise TrainingError(self.diagnosis(loss))
        means = mean_stats(sums)
        del means["tokens"]
        return {
            "loss": loss,
            "grad_norm": float(grad_norm),
            "learning_rate": float(learning_rate),
            **means,
            "update/skipped": float(not finite),
        }

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities [N, T] of a sorted batch under the policy as it is, on the CPU."""
        parts = self.micro_batches(batch)
        prefix = self.policy.shared_prefix(parts)
        options: dict[str, Any] = {"temperature": self.config.temperature, "prefix": prefix}
        rows = [self.policy.logprobs(part, **options).logprobs.cpu() for part in parts]
        return torch.cat(rows) if rows else torch.zeros_like(batch.token_weights)

    def accumulate(self, batch: TokenBatch) -> list[dict[str, Tensor]]:
        """Set the gradient to that of the batch's loss; returns a dict of sums a micro-batch."""
        self.optimizer.zero_grad()
        parts = self.micro_batches(batch)
        prefix = self.policy.shared_prefix(parts)
        sums = [self.backward(part, prefix) for part in parts]
        if prefix:
            prefix.backward()
        return [{name: value.cpu() for name, value in each.items()} for each in sums]

    def backward(self, batch: TokenBatch, prefix: SharedPrefix | None = None) -> dict[str, Tensor]:
        """Add a micro-batch's gradient to the parameters'; returns its loss and metric sums."""
        config, mask = self.config, batch.completion_mask
        now = self.policy.logprobs(batch, temperature=config.temperature, prefix=prefix)
        old = now.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        level = config.importance_level
        weights, gap = importance_weights(
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
        difference = now.logprobs.detach() - batch.sampling_logprobs
        return {
            **sums,
            **gap,
            "loss": loss.detach(),
            "update/entropy": (now.entropy.detach() * mask).sum(),
            "sampling/logp_difference": (difference.abs() * mask).sum(),
        }

    def micro_batches(self, batch: TokenBatch) -> list[TokenBatch]:
        """Slices of a sorted batch that fit the budget, on the policy's device."""
        return [part.to(self.policy.device) for part in self.slices(batch)]

    def slices(self, batch: TokenBatch) -> list[TokenBatch]:
        """The same, where the batch is."""
        return split_batch(batch, self.max_tokens, padded=self.policy.forward_mode == "padded")

    def with_oom_retry(self, work: Callable[[TokenBatch], Result], batch: TokenBatch) -> Result:
        """Do a pass over the batch; out of memory, do it again in micro-batches half as large.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        while True:
            try:
                return work(batch)
            except RuntimeError as error:
                if not out_of_memory(error) or len(self.slices(batch)) == len(batch):
                    raise
            # Here the error is gone, and with it the frames that held the failed pass's tensors.
            self.max_tokens //= 2
            self.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning(
                "out of memory in the update: micro-batches of %d tokens from here on",
                self.max_tokens,
            )

    def diagnosis(self, loss: float) -> str:
        """What is not finite, and what usually helps."""
        named = self.policy.named_parameters()
        bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
        where = f"{len(bad)} tensors, the first {bad[0]}" if bad else "none"
        return (
            f"{self.bad_updates} updates in a row were not finite: loss {loss:g}, gradients that "
            f"are not finite: {where}. They were left out, the policy is as it was before them. "
            f"Usual causes: a dtype without headroom ({self.config.dtype}), a learning rate too "
            f"high ({self.config.learning_rate:g})"
        )

    def state(self) -> dict[str, Any]:
        """What `load_state` takes."""
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an allocation failed, on a GPU or, where torch has no class for it, a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
