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

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from grpo.tree.layout import Chunk


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
    if not grouped:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    # One split, whose gradient is one tensor: that of a slice is as long as all nodes, per chunk.
    queries = query.split([chunk.stop - chunk.start for chunk in chunks], dim=2)
    selected = [chunk.keys for chunk in chunks if chunk.keys is not None]
    nodes = torch.cat(selected) if selected else None
    keys, values = (_of_chunks(x, nodes, chunks) for x in (key, value))
    outputs = [
        F.scaled_dot_product_attention(q, k, v, chunk.mask, scale=scaling, enable_gqa=grouped)
        for chunk, q, k, v in zip(chunks, queries, keys, values, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _of_chunks(x: Tensor, nodes: Tensor | None, chunks: Sequence[Chunk]) -> Sequence[Tensor]:
    """Return what each chunk attends to of the keys or values, [1, H, M, D]; `nodes` is of all."""
    if nodes is None:
        return [x] * len(chunks)
    sizes = [chunk.mask.shape[-1] for chunk in chunks]
    parts: Sequence[Tensor] = x.index_select(2, nodes).split(sizes, dim=2)
    return parts


def flex(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None
) -> Tensor:
    """Compute attention by flex_attention (see `sdpa`).

    It is compiled on CUDA alone: elsewhere it is slow, and has no backward pass.

    Args:
        query: [1, H, L, D], of the new nodes.
        key: [1, H_kv, M, D], of all nodes.
        value: [1, H_kv, M, D_v].
        mask: from `grpo.tree.block_mask`.
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


def _takes_groups(query: Tensor) -> bool:
    """Tell whether the fast attention kernel takes a mask and grouped heads together.

    On CUDA cuDNN's does, which torch chooses in half precision from Hopper (9.0) on.
    """
    if query.device.type != "cuda" or torch.version.hip:
        return query.device.type == "cpu"
    half = query.dtype in (torch.bfloat16, torch.float16)
    return half and torch.cuda.get_device_capability(query.device) >= (9, 0)
