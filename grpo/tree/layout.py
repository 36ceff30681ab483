"""What a model's layers need to know to run over a token tree (see `grpo.tree.layers`).

An update's tree is computed at once (`TreeLayout`), a sampler's grows
(`grpo.generators.tree_cache`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo.tree.token_tree import TokenTree

# Queries at a time. Few waste fewer products on what the mask hides, many make larger products:
# 64 to 128 were fastest on two CPU cores; a GPU wants few launches (1024 is not measured).
CHUNK = {"cpu": 128, "cuda": 1024}


LayerCache = dict[nn.Module, tuple[Tensor, ...]]


class Chunk(NamedTuple):
    """The queries [start, stop), and the nodes they see: `keys` [K] where `mask` is True."""

    start: int
    stop: int
    keys: Tensor
    mask: Tensor


class Layout(ABC):
    """What the layers need to know of a tree: some of its nodes, L, are computed now.

    Attributes:
        chunks: the attention's work.
    """

    chunks: Sequence[Chunk]

    @abstractmethod
    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Put what earlier nodes left in a layer before what is the new ones' own.

        Args:
            layer: any that looks at other tokens.
            own: of length L in one dimension.
            dim: that dimension.

        Returns:
            As many tensors, of all nodes up to the last new one.
        """

    @abstractmethod
    def taps(self, layer: nn.Module, own: Tensor) -> list[Tensor]:
        """What each tap of a convolution reads: the node itself, its parent and so on.

        Args:
            layer: the convolution.
            own: [L, D], its input at the new nodes.

        Returns:
            W tensors [L, D]; 0 above a root.
        """


def cut_chunks(
    attention: Callable[[int, int], tuple[Tensor, Tensor]],
    first: int,
    stop: int,
    device: torch.device,
) -> list[Chunk]:
    """The work of the nodes [first, stop), which are computed now.

    Args:
        attention: what a run of nodes sees, as `TokenTree.attention` says it.
        first: the first of them.
        stop: one past the last.
        device: where the model is.
    """
    size = CHUNK.get(device.type, CHUNK["cuda"])
    chunks = []
    for start in range(first, stop, size):
        end = min(start + size, stop)
        keys, mask = attention(start, end)
        chunks.append(Chunk(start - first, end - first, keys.to(device), mask.to(device)))
    return chunks


class TreeLayout(Layout):
    """What the layers need to know of a tree, made once for all of them.

    Its first nodes may be computed already: the layers then get the others alone, and read
    from `past` what the first ones left them.

    Attributes:
        first: the number of nodes that are computed already.
        chunks: the attention's work.
        ancestors: [M - first, W] long; each node, its parent and so on, M where there is none.
        past: layer -> what the first nodes left in it; empty if there are none.
        left: filled with layer -> what the nodes leave in it; None if nobody reads that.
    """

    def __init__(
        self,
        tree: TokenTree,
        width: int,
        device: torch.device,
        *,
        first: int = 0,
        past: LayerCache | None = None,
        left: LayerCache | None = None,
    ) -> None:
        """Lay out a tree.

        Args:
            tree: on the CPU, of M nodes.
            width: W, the widest convolution's kernel, or 0.
            device: where the model is.
            first: the number of nodes, from the root on, that are computed already.
            past: what they left.
            left: where the layers put what others will read.
        """
        self.chunks = cut_chunks(tree.attention, first, len(tree), device)
        self.ancestors = tree.ancestors(width)[first:].to(device)
        self.first, self.past, self.left = first, past or {}, left

    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Put the past nodes' before the others' own (see `Layout`)."""
        if self.left is not None:
            self.left[layer] = own
        if layer not in self.past:
            return own
        pairs = zip(self.past[layer], own, strict=True)
        return tuple(torch.cat(pair, dim) for pair in pairs)

    def taps(self, layer: nn.Module, own: Tensor) -> list[Tensor]:
        """Gather along the parents (see `Layout`)."""
        (inputs,) = self.prepend_cached(layer, own, dim=0)
        inputs = F.pad(inputs, (0, 0, 0, 1))  # row M: the zeros above a root
        return [inputs.index_select(0, nodes) for nodes in self.ancestors.unbind(-1)]
