"""Log-probabilities of chosen tokens and entropies, without all logits in memory at once.

With a vocabulary of 50,000 logits would be the largest tensor of the update, so they are computed
for one chunk of positions at a time and recomputed in the backward pass (Chen et al., arXiv
1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.transfer import to_device

RECOMPUTED: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
"""How activations are recomputed: nothing here is random."""


def token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    positions: Tensor,
    tokens: Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Compute log p(token | prefix) of C chosen tokens, and the entropy of each distribution.

    log p(v) = logit_v / temperature - logsumexp(logits / temperature), in float32 or wider.
    H = -sum_v p(v) log p(v), in nats.

    Args:
        hidden: [P, D] last hidden states of P prefixes.
        head: the output layer, [*, D] -> [*, V] logits.
        positions: [C] long, ascending, on the CPU; the prefix that the token continues.
        tokens: [C] long, on the CPU; the token.
        temperature: temperature of the sampling distribution, above 0.
        chunk_size: number of prefixes whose logits are in memory at once.

    Returns:
        logprobs [C] and entropy [P], in nats.
    """

    def chunk(hidden: Tensor, local: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        if temperature != 1:
            logits = logits / temperature
        logprobs = torch.log_softmax(logits, dim=-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs[local, tokens], entropy

    # A single chunk has its logits in memory during the backward pass either way: recomputing them
    # would cost time and save nothing.
    recompute = torch.is_grad_enabled() and hidden.requires_grad and hidden.shape[0] > chunk_size
    parts = []
    starts = torch.arange(0, hidden.shape[0] + chunk_size, chunk_size)
    cuts = torch.searchsorted(positions, starts).tolist()
    local, tokens = to_device((positions % chunk_size, tokens), hidden.device)
    for start, first, last in zip(starts.tolist(), cuts, cuts[1:], strict=False):
        args = hidden[start : start + chunk_size], local[first:last], tokens[first:last]
        parts.append(checkpoint(chunk, *args, **RECOMPUTED) if recompute else chunk(*args))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
