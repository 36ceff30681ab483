"""The loss of a warm start on demonstrations that it does not imitate."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from grpo.algorithm.batch import rows_from_completions, sort_batch
from grpo.types import Episode

if TYPE_CHECKING:
    from grpo.training.updater import Updater

MEASUREMENTS = 10
"""During the updates, beside the one before them."""

RISES = 3
"""Measurements in a row above the lowest one, from which on that is worth a warning."""

TOWARDS_GREEDY = 1e-5
"""A temperature at which the most probable token has all of the probability."""

_log = logging.getLogger(__name__)


class HeldOutLoss:
    """Measures how probable held-out demonstrations are, now and then.

    Attributes:
        episodes: this rank's share of them.
    """

    def __init__(self, updater: Updater, steps: int) -> None:
        """Make the measure of a warm start.

        Args:
            updater: computes the log-probabilities, and knows the ranks.
            steps: updates of the warm start.
        """
        self.episodes: Sequence[Episode] = ()
        self._updater, self._steps = updater, steps
        self._every = max(1, math.ceil(steps / MEASUREMENTS))
        self._lowest, self._lowest_at, self._above = math.inf, 0, 0

    def measure(self, step: int) -> dict[str, float]:
        """Measure before the first update, at every tenth part of them, and after the last.

        Args:
            step: updates done.

        Returns:
            The metrics (see `grpo.training.metrics.IMITATION`), over all ranks; {} at other steps,
            and where nothing is held out.
        """
        if step % self._every and step != self._steps:
            return {}
        sums = torch.tensor(self._updater.world.all_gather(self._sums()), dtype=torch.float64)
        loss, tokens, greedy, actions = sums.sum(0).tolist()
        if not tokens:
            return {}
        self._compare(loss / tokens, step)
        return {
            "imitation/held_out_loss": loss / tokens,
            "imitation/held_out_greedy": greedy / actions,
        }

    def state(self) -> list[Any]:
        """Return what later warnings depend on."""
        return [self._lowest, self._lowest_at, self._above]

    def load_state(self, state: Sequence[Any]) -> None:
        """Restore what `state` returned."""
        self._lowest, self._lowest_at, self._above = state

    def _sums(self) -> tuple[float, int, int, int]:
        """Return sums over this rank's share: loss, tokens, greedy actions, actions."""
        completions = [turn.completion for episode in self.episodes for turn in episode.turns]
        if not completions:
            return 0.0, 0, 0, 0
        updater = self._updater
        padded = updater.policy.forward_mode == "padded"
        batch = sort_batch(rows_from_completions(completions), padded=padded)
        own = updater.with_oom_retry(updater.logprobs, batch)
        at_greedy = partial(updater.logprobs, temperature=TOWARDS_GREEDY)
        is_greedy = updater.with_oom_retry(at_greedy, batch) > math.log(0.5)
        actions = (is_greedy | ~batch.completion_mask).all(1)
        loss: float = -own.double().sum().item()
        return loss, int(batch.completion_mask.sum()), int(actions.sum()), len(actions)

    def _compare(self, loss: float, step: int) -> None:
        """Warn, once, of a loss that has risen for long."""
        if loss < self._lowest:
            self._lowest, self._lowest_at, self._above = loss, step, 0
        else:
            self._above += 1
        if self._above == RISES and self._updater.world.is_main:
            _log.warning(
                "the loss on held-out demonstrations was lowest after %d updates (%.3f nats per "
                "token) and is %.3f after %d: fewer updates, more demonstrations, or a smaller "
                "imitation_learning_rate",
                *(self._lowest_at, self._lowest, loss, step),
            )
