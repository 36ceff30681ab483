"""The gap between generator and trainer: which policy it is measured with, and what it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grpo.algorithm.losses import mean_stats
from grpo.generators.base import GeneratorError
from grpo.generators.sync_check import gap_bound
from grpo.types import TokenBatch

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.model.policy import Policy

_log = logging.getLogger(__name__)


class GapMonitor:
    """Measures the gap with the policy that sampled, and ends a run that samples from another.

    With `max_staleness` rows may have been sampled by the policy before the last update. They are
    measured with its weights, of which an adapter's are kept; those of a whole model are too many,
    so with train=full these rows are not measured. All other rows, whatever version they name, are
    measured with the current policy: there is nothing else that they could be right with.

    Attributes:
        bound: the gap in nats that the sync check accepts.
    """

    def __init__(self, config: Config, policy: Policy, *, quiet: bool = False) -> None:
        """Set the bounds.

        Args:
            config: the run's options.
            policy: the policy that is trained.
            quiet: True to leave the warning to another rank.
        """
        self.config, self.policy, self.quiet = config, policy, quiet
        self.bound = gap_bound(config.max_logp_difference, policy.model.dtype)
        self._keeps_weights = policy.adapter() is not None
        self._earlier: tuple[int, list[Tensor] | None] | None = None  # version and weights
        self._since = 0
        if config.max_staleness and not self._keeps_weights and not quiet:
            _log.warning(
                "max_staleness with train=full: the gap to the generator is not measured for "
                "rollouts of the step before, so nothing ends a run whose updates do not reach it"
            )

    def keep_policy(self) -> None:
        """Keep the policy as it is before an update, if rollouts by it may still come."""
        if self.config.max_staleness:
            weights = [p.detach().clone() for p in self.policy.parameters() if self._keeps_weights]
            self._earlier = self.policy.version, weights or None

    def sampler_logprobs(
        self, batch: TokenBatch, compute: Callable[[TokenBatch], Tensor]
    ) -> Tensor | None:
        """Compute the log-probabilities of the policies that sampled a batch.

        Args:
            batch: N sorted rows.
            compute: returns the log-probabilities [N, T] of a sorted batch under the policy as it
                is at the moment.

        Returns:
            [N, T], NaN in rows that cannot be measured; None if the current policy sampled all.
        """
        versions, mixed = batch.policy_versions, batch.is_mixed
        if versions is None or mixed is None:
            return None
        stale, weights = torch.zeros_like(mixed), None
        if self._earlier is not None and self._earlier[0] != self.policy.version:
            stale, weights = (versions == self._earlier[0]) & ~mixed, self._earlier[1]
        current = ~(stale | mixed)
        if current.all():
            return None
        logprobs = torch.full_like(batch.token_weights, torch.nan)
        if current.any():
            logprobs[current] = compute(batch.select(current.nonzero()[:, 0])).to(logprobs)
        if stale.any() and weights is not None:
            with self._weights_are(weights):
                logprobs[stale] = compute(batch.select(stale.nonzero()[:, 0])).to(logprobs)
        return logprobs

    def check(self, step: int, gap: float | None) -> None:
        """Act on the gap of a step, before anything is learned from it.

        Args:
            step: number of the step, from 1.
            gap: mean over all ranks' measured tokens, in nats; None if there is none.

        Raises:
            GeneratorError: it is above `gap_stop` times the bound.
        """
        if gap is None:
            return
        stop, warning = (
            factor > 0 and not gap <= factor * self.bound  # NaN is too much as well
            for factor in (self.config.gap_stop, self.config.gap_warning)
        )
        if not stop and not warning:
            self._since = 0
            return
        is_first, self._since = not self._since, self._since or step
        measured = (
            f"the generator's log-probabilities differ by {gap:.2g} nats per token (mean) from "
            f"those of the policy that should have sampled, expected at most {self.bound:.2g}, "
            f"since step {self._since}"
        )
        if stop:
            raise GeneratorError(
                f"step {step} was not learned from: {measured}. It samples from something else: "
                f"{self._advice()}. --gap-stop sets how many times the expected gap ends a run"
            )
        if is_first and not self.quiet:
            _log.warning("step %d: %s; check that updates reach it", step, measured)

    def _advice(self) -> str:
        if self.config.backend == "local":
            return "try --forward padded, which samples without the cache of shared prefixes"
        return (
            "check that nobody else gives it weights and that it runs with the options of "
            "grpo serve-vllm, restart it, or try the other --vllm-sync (adapter or merged)"
        )

    @contextmanager
    def _weights_are(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Within this context the policy's trained weights are these."""
        parameters = self.policy.parameters()
        now = [p.data for p in parameters]
        try:
            for p, data in zip(parameters, weights, strict=True):
                p.data = data
            yield
        finally:
            for p, data in zip(parameters, now, strict=True):
                p.data = data


def mean_gap(sums: Sequence[dict[str, Tensor]]) -> float | None:
    """Compute the mean gap in nats from micro-batches' sums; None if no token was measured."""
    difference, tokens, unmeasured = (
        sum(part[name].item() for part in sums)
        for name in ("sampling/logp_difference", "tokens", "sampling/unmeasured")
    )
    return difference / (tokens - unmeasured) if tokens > unmeasured else None


def means_and_gap(sums: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Compute the means over all micro-batches' tokens, and the gap over the measured ones."""
    means = mean_stats(sums)
    del means["tokens"], means["sampling/logp_difference"], means["sampling/version"]
    gap = mean_gap(sums)
    return means if gap is None else means | {"sampling/logp_difference": gap}


def rank_metrics(per_rank: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, float]:
    """Compute each rank's gap and the version that its generator sampled with, of several ranks.

    Args:
        per_rank: the sums of each rank's micro-batches; none for a rank without rows.
    """
    metrics: dict[str, float] = {}
    if len(per_rank) == 1:
        return metrics
    for rank, sums in enumerate(per_rank):
        if (gap := mean_gap(sums)) is not None:
            metrics[f"sampling/logp_difference/rank{rank}"] = gap
        if tokens := sum(part["tokens"].item() for part in sums):
            version = sum(part["sampling/version"].item() for part in sums) / tokens
            metrics[f"sampling/version/rank{rank}"] = version
    return metrics
