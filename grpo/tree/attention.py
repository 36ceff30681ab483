"""The two kernels of a token tree's attention (`grpo.tree.kernel_choice` chooses).

SDPA takes a mask, and is called for chunks of the nodes (`grpo.tree.chunks`). flex_attention takes
a block mask, which leaves out every block of queries and keys in which nothing is seen; on CUDA it
is compiled on its first use, for trees of any size.

Source: https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from grpo.transfer import to_device
from grpo.tree.layout import Chunk

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys of a block; flex_attention's default, which its kernels are made for."""


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, chunks: Sequence[Chunk], scaling: float | None
) -> Tensor:
    """Compute attention by SDPA, one call per chunk.

    Args:
        query: [1, H, L, D], of the new nodes.
        key: [1, H_kv, M, D], of all nodes.
        value: [1, H_kv, M, D_v].
        chunks: which nodes each query attends to.
        scaling: factor of the products; None for 1 / sqrt(D).

    Returns:
        [1, H, L, D_v].
    """
    grouped = _takes_groups(query)

    def select(x: Tensor, keys: Tensor | None) -> Tensor:
        x = x if keys is None else x.index_select(2, keys)
        return x if grouped else x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)

    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, start:stop],
            select(key, keys),
            select(value, keys),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, stop, keys, mask in chunks
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None
) -> Tensor:
    """Compute attention by flex_attention (see `sdpa`).

    It is compiled on CUDA alone: elsewhere it is slow, and has no backward pass.

    Args:
        query: [1, H, L, D], of the new nodes.
        key: [1, H_kv, M, D], of all nodes.
        value: [1, H_kv, M, D_v].
        mask: from `block_mask`.
        scaling: factor of the products; None for 1 / sqrt(D).

    Returns:
        [1, H, L, D_v].
    """
    from torch.nn.attention.flex_attention import flex_attention

    attend: Any = _compiled() if query.is_cuda else flex_attention
    output: Tensor = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)
    return output


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Without `fullgraph` more shapes than dynamo compiles would be computed with all products in
    # memory, in silence.
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return compiled


def block_mask(ends: Tensor, first: int, device: torch.device) -> BlockMask:
    """Make the block mask of a tree whose nodes from `first` on are the queries.

    Node j is seen by the nodes [j, ends[j]) (see `grpo.tree.token_tree`), so counting where these
    ranges begin and end gives the blocks, without a matrix of all nodes.

    Args:
        ends: [M] long, on the CPU; one past a node's last descendant.
        first: the first query.
        device: the model's device.
    """
    from torch.nn.attention.flex_attention import BlockMask

    node, queries = np.arange(len(ends)), len(ends) - first
    start = np.maximum(node, first) - first
    stop = np.maximum(ends.numpy() - first, start)  # nobody sees a node that ends before `first`
    size = -(-queries // BLOCK), -(-len(ends) // BLOCK)

    def seen(first_block: npt.NDArray[Any], stop_block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Count the nodes of each block of keys that each block of queries sees."""
        changes = np.zeros((size[0] + 1, size[1]), dtype=np.int64)
        some = stop_block > first_block
        np.add.at(changes, (first_block[some], node[some] // BLOCK), 1)
        np.add.at(changes, (stop_block[some], node[some] // BLOCK), -1)
        return changes.cumsum(0)[:-1]

    by_some = seen(start // BLOCK, np.where(stop > start, -(-stop // BLOCK), 0)) > 0
    by_all = seen(-(-start // BLOCK), stop // BLOCK) == BLOCK
    parts = [*_ordered(by_some & ~by_all), *_ordered(by_all)]
    ranges = [torch.from_numpy(x.astype(np.int32)) for x in (start, stop)]
    some, some_at, every, every_at, starts, stops = to_device([*parts, *ranges], device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (starts[key] <= query) & (query < stops[key])

    mask: BlockMask = BlockMask.from_kv_blocks(
        some, some_at, every, every_at, BLOCK, sees, seq_lengths=(queries, len(ends))
    )
    return mask


def _ordered(blocks: npt.NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    """Return the number of blocks in each row, and the blocks in order before the others."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    counts = blocks.sum(1).astype(np.int32)
    return torch.from_numpy(counts)[None, None], torch.from_numpy(order)[None, None]


def _takes_groups(query: Tensor) -> bool:
    """Tell whether the fast attention kernel takes a mask and grouped heads together.

    On CUDA cuDNN's does, which torch chooses in half precision from Hopper (9.0) on.
    """
    if query.device.type != "cuda" or torch.version.hip:
        return query.device.type == "cpu"
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(query.device) >= (9, 0)
