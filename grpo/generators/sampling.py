"""Drawing tokens of many distributions at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.generators.base import GeneratorError
from grpo.transfer import to_device


def draw_tokens(
    logits: Tensor,
    rows: Sequence[int],
    temperatures: Sequence[float],
    uniform: npt.NDArray[np.float64],
) -> tuple[list[list[int]], list[list[float]]]:
    """Draw K tokens from each of S distributions, softmax(logits / temperature).

    A token is the inverse of the cumulative distribution at a uniform number. The host waits for
    the device once, for the result.

    Args:
        logits: [R, V].
        rows: S numbers; the row of the logits that a distribution is made of.
        temperatures: S numbers; at 0 the tokens are the most likely one, its log-probability that
            at a temperature of 1.
        uniform: [S, K], from 0 to below 1; not used at a temperature of 0.

    Returns:
        Tokens and their log-probabilities in nats, S lists of K each.

    Raises:
        GeneratorError: a log-probability is not a number.
    """
    if logits.device.type == "mps":  # has no float64
        logits = logits.cpu()
    wide = torch.promote_types(logits.dtype, torch.float32)
    given = np.array(temperatures)
    row, greedy, scale, target = to_device(
        [
            torch.tensor(rows),
            torch.from_numpy(given == 0)[:, None],
            torch.from_numpy(np.where(given == 0, 1, given))[:, None].to(wide),
            torch.from_numpy(uniform),
        ],
        logits.device,
    )
    logprobs = torch.log_softmax(logits[row].to(wide) / scale, dim=-1)
    if given.any():
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        tokens = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # where the sum is not a number
    else:
        tokens = torch.zeros(uniform.shape, dtype=torch.long, device=logits.device)
    if not given.all():
        tokens = torch.where(greedy, logprobs.argmax(-1, keepdim=True), tokens)
    chosen = logprobs.gather(1, tokens)
    drawn = torch.stack([tokens.double(), chosen.double()]).cpu()  # exact in float64
    if not drawn.isfinite().all():
        raise GeneratorError("cannot sample: the policy's log-probabilities are not numbers")
    return drawn[0].long().tolist(), drawn[1].tolist()
