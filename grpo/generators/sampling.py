"""Drawing tokens of many distributions at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.generators.base import GeneratorError
from grpo.transfer import to_device

# Distributions that are computed together. A CPU's caches hold little more than one of a large
# vocabulary: 32 at a time took two to four times as long. A GPU wants few kernel launches.
BLOCK = {"cpu": 1, "cuda": 256}

LEVELS = 4
"""Levels of the tree of tokens that `draw_tokens` descends."""


def draw_tokens(
    logits: Tensor,
    rows: Sequence[int] | npt.NDArray[np.int64],
    temperatures: Sequence[float],
    uniform: Sequence[npt.ArrayLike] | npt.NDArray[np.float64],
) -> tuple[list[int], list[float]]:
    """Draw a token for each of N requests, from softmax(logits / temperature).

    Tokens are the leaves of a tree of LEVELS levels, in order of their ids, with ceil(V^(1/LEVELS))
    branches per node. At each level a branch is drawn with a number of its own, by inverting the
    cumulative distribution of the branches. One number and one cumulative distribution of all
    tokens would do, but rounding, which differs from batch to batch, moves the bounds of all rare
    tokens at once: it changed one token in 250, and here it changes one in 50,000 (SmolLM2-135M in
    float32, 3.6 nats per token).

    Requests that read the same row at the same temperature share a distribution. The host waits
    for the device once.

    Args:
        logits: [R, V].
        rows: N numbers; the row that each request reads.
        temperatures: N numbers; at 0 the token is the most likely one, its log-probability that
            at a temperature of 1.
        uniform: [N, LEVELS]; from 0 to below 1; not used at a temperature of 0.

    Returns:
        N tokens and N log-probabilities in nats.

    Raises:
        GeneratorError: a log-probability is not a number.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    # Of each request: which of the S distributions it reads, and which of its K draws is its own.
    sharing: Counter[tuple[int, float]] = Counter()
    order: dict[tuple[int, float], int] = {}
    places = []
    for pair in zip(map(int, rows), temperatures, strict=True):
        places.append((order.setdefault(pair, len(order)), sharing[pair]))
        sharing[pair] += 1
    which, position = np.array(places).T
    numbers = np.zeros((len(sharing), position.max() + 1, LEVELS))
    numbers[which, position] = uniform
    distinct, given = (np.array(x) for x in zip(*sharing, strict=True))
    wide = torch.promote_types(logits.dtype, torch.float32)
    index, greedy, scale, target = to_device(
        (
            torch.from_numpy(distinct),
            torch.from_numpy(given == 0)[:, None],
            torch.from_numpy(np.where(given == 0, 1.0, given))[:, None].to(wide),
            torch.from_numpy(numbers),
        ),
        logits.device,
    )
    if distinct.tolist() != list(range(len(logits))):  # else a copy would change nothing
        logits = logits[index]
    weights = _Weights(logits, scale)
    tokens = weights.draw(target) if given.any() else torch.zeros_like(target[..., 0]).long()
    if not given.all():
        tokens = torch.where(greedy, logits.argmax(-1, keepdim=True), tokens)
    logprobs = weights.logprobs(tokens)
    result = torch.stack([tokens.double(), logprobs.double()]).cpu()  # float64 holds all tokens
    if not result.isfinite().all():
        raise GeneratorError("cannot sample: the policy's log-probabilities are not numbers")
    chosen = result[:, which, position]
    return chosen[0].long().tolist(), chosen[1].tolist()


class _Weights:
    """The numerators of S softmaxes, and their sums below each node of the tree of tokens.

    Args:
        logits: [S, V].
        scale: [S, 1]; the temperatures, in the dtype of the weights.
    """

    def __init__(self, logits: Tensor, scale: Tensor):
        (count, size), branches = logits.shape, 1
        while branches**LEVELS < size:
            branches += 1
        self.logits, self.scale, self.branches = logits, scale, branches
        self.top = torch.empty_like(scale)
        shape = (count, *[branches] * LEVELS)
        levels = [scale.new_empty(shape[: len(shape) - n]) for n in range(LEVELS + 1)]
        leaves = levels[0].view(count, -1)
        leaves[:, size:] = 0.0
        step = BLOCK.get(logits.device.type, BLOCK["cuda"])
        for block in map(slice, range(0, count, step), range(step, count + step, step)):
            scaled = logits[block].to(scale.dtype) / scale[block]
            torch.amax(scaled, -1, keepdim=True, out=self.top[block])
            torch.exp(scaled - self.top[block], out=leaves[block, :size])
            for below, level in pairwise(levels):
                torch.sum(below[block], -1, out=level[block])
        self.total, *self.levels = reversed(levels)

    def draw(self, uniform: Tensor) -> Tensor:
        """Draw K tokens of each distribution: [S, K].

        Args:
            uniform: [S, K, LEVELS].
        """
        rows = torch.arange(len(uniform), device=uniform.device)
        node: tuple[Tensor, ...] = (rows[:, None].expand(uniform.shape[:2]),)
        token = torch.zeros_like(node[0])
        for level, number in zip(self.levels, uniform.unbind(-1), strict=True):
            node = *node, _invert(level[node], number)
            token = token * self.branches + node[-1]
        return token.clamp(max=self.logits.shape[-1] - 1)  # where a sum is not a number

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Return the log-probabilities of tokens [S, K], in nats."""
        scaled = self.logits.gather(1, tokens).to(self.scale.dtype) / self.scale
        return scaled - self.top - self.total[:, None].log()


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the indices [S, K] at which the cumulative sums of weights [S, K, n] exceed a share.

    Args:
        weights: not negative.
        uniform: [S, K]; the share of the sum.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    share = uniform[..., None] * cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative, share, right=True)[..., 0]
    return drawn.clamp(max=weights.shape[-1] - 1)
