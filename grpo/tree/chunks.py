"""Cutting the attention of a token tree's nodes into calls over the keys that they need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from grpo.transfer import to_device
from grpo.tree.layout import Chunk

# Queries per attention call. Small chunks compute fewer masked products, large ones make better
# use of the hardware: 64 to 128 were fastest on two CPU cores. A GPU wants few kernel launches:
# trees of more than 1024 nodes without a CUDA graph are not measured with other numbers.
CHUNK = {"cpu": 128, "cuda": 1024}


def cut_chunks(
    attention: Callable[[int, int], tuple[Tensor, Tensor]],
    first: int,
    stop: int,
    device: torch.device,
) -> list[Chunk]:
    """Cut the attention of the nodes [first, stop), which are computed now, into chunks.

    Args:
        attention: (start, stop) -> keys and mask, as `TokenTree.attention` returns them.
        first: the first new node.
        stop: one past the last new node.
        device: the model's device.
    """
    size = CHUNK.get(device.type, CHUNK["cuda"])
    chunks = []
    for start in range(first, stop, size):
        end = min(start + size, stop)
        keys, mask = attention(start, end)
        chunks.append(Chunk(start - first, end - first, *to_device((keys, mask), device)))
    return chunks
