"""Cutting the attention of a token tree's nodes into calls over the keys that they need."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.transfer import to_device
from grpo.tree.layout import Chunk

# Queries per attention call. Small chunks compute fewer masked products, large ones make better
# use of the hardware: 64 to 128 were fastest on two CPU cores. A GPU wants few kernel launches:
# trees of more than 1024 nodes without a CUDA graph are not measured with other numbers.
CHUNK = {"cpu": 128, "cuda": 1024}


WASTE = 1024
"""Masked products of a query with a key that take a CPU about as long as another call."""


def cut_chunks(
    attention: Callable[[int, int], tuple[Tensor, Tensor]],
    first: int,
    stop: int,
    device: torch.device,
    sees: npt.NDArray[np.bool_] | None = None,
) -> list[Chunk]:
    """Cut the attention of the nodes [first, stop), which are computed now, into chunks.

    Args:
        attention: (start, stop) -> keys and mask, as `TokenTree.attention` returns them.
        first: the first new node.
        stop: one past the last new node.
        device: the model's device.
        sees: [stop - first, stop]; which nodes the new ones attend to. On a CPU the cuts are then
            made where these differ: requests on different pages share few keys.
    """
    size = CHUNK.get(device.type, CHUNK["cuda"])
    if sees is None or device.type != "cpu":
        starts = list(range(first, stop, size))
    else:
        starts = [first + n for n in _cuts(sees, size)]
    chunks = []
    for start, end in zip(starts, [*starts[1:], stop], strict=True):
        keys, mask = attention(start, end)
        chunks.append(Chunk(start - first, end - first, *to_device((keys, mask), device)))
    return chunks


def _cuts(sees: npt.NDArray[np.bool_], size: int) -> list[int]:
    """Return where chunks of up to `size` queries begin, so that few of their products are masked.

    A query begins a chunk if its own keys and those of the chunk before it together would add more
    than `WASTE` masked products.
    """
    cuts, keys = [0], sees[0]
    own = sees.sum(1).tolist()
    count, width = 1, own[0]
    for n in range(1, len(sees)):
        together = keys | sees[n]
        wide = int(np.count_nonzero(together))
        masked = (count + 1) * wide - count * width - own[n]
        if masked > WASTE or count == size:
            cuts.append(n)
            keys, count, width = sees[n], 1, own[n]
        else:
            keys, count, width = together, count + 1, wide
    return cuts
