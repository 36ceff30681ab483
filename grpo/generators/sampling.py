"""Drawing tokens of many distributions at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.generators.base import GeneratorError
from grpo.transfer import to_device

# Distributions that are computed together. A CPU's caches hold little more than one of a large
# vocabulary: 32 at a time took two to four times as long. A GPU wants few kernel launches.
BLOCK = {"cpu": 1, "cuda": 256}


def draw_tokens(
    logits: Tensor,
    rows: Sequence[int] | npt.NDArray[np.int64],
    temperatures: Sequence[float],
    uniform: Sequence[float],
) -> tuple[list[int], list[float]]:
    """Draw a token for each of N requests, from softmax(logits / temperature).

    A token is the inverse of the cumulative distribution at a uniform number. Requests that read
    the same row at the same temperature share a distribution. The host waits for the device once.

    Args:
        logits: [R, V].
        rows: N numbers; the row that each request reads.
        temperatures: N numbers; at 0 the token is the most likely one, its log-probability that
            at a temperature of 1.
        uniform: N numbers from 0 to below 1; not used at a temperature of 0.

    Returns:
        N tokens and N log-probabilities in nats.

    Raises:
        GeneratorError: a log-probability is not a number.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    # Of each request: which of the S distributions it reads, and which of its K numbers is its own.
    sharing: Counter[tuple[int, float]] = Counter()
    order: dict[tuple[int, float], int] = {}
    places = []
    for pair in zip(map(int, rows), temperatures, strict=True):
        places.append((order.setdefault(pair, len(order)), sharing[pair]))
        sharing[pair] += 1
    which, position = np.array(places).T
    numbers = np.zeros((len(sharing), position.max() + 1))
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
    size = BLOCK.get(logits.device.type, BLOCK["cuda"])
    drawn = [
        _draw(*block, sample=bool(given.any()), greed=not given.all())
        for block in zip(*(x.split(size) for x in (logits, scale, target, greedy)), strict=True)
    ]
    tokens, logprobs = (torch.cat(parts).double() for parts in zip(*drawn, strict=True))
    result = torch.stack([tokens, logprobs]).cpu()  # float64 holds all tokens exactly
    if not result.isfinite().all():
        raise GeneratorError("cannot sample: the policy's log-probabilities are not numbers")
    chosen = result[:, which, position]
    return chosen[0].long().tolist(), chosen[1].tolist()


def _draw(
    logits: Tensor, scale: Tensor, target: Tensor, greedy: Tensor, *, sample: bool, greed: bool
) -> tuple[Tensor, Tensor]:
    """Draw a block of rows: tokens and log-probabilities [S, K].

    Args:
        logits: [S, V].
        scale: [S, 1]; the temperature, in the dtype of the log-probabilities.
        target: [S, K]; the share of the distribution below the token.
        greedy: [S, 1]; True for the most likely token instead.
        sample: False if all rows are greedy.
        greed: False if no row is greedy.
    """
    logprobs = torch.log_softmax(logits.to(scale.dtype) / scale, dim=-1)
    tokens = torch.zeros_like(target, dtype=torch.long)
    if sample:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        tokens = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # where the sum is not a number
    if greed:
        tokens = torch.where(greedy, logprobs.argmax(-1, keepdim=True), tokens)
    return tokens, logprobs.gather(1, tokens)
