"""The block mask of flex_attention (see `grpo.tree.attention`), counted from a token tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.transfer import to_device

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys of a block; flex_attention's default, which its kernels are made for."""


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
