"""The local generator's cache as a token tree: every distinct prefix is computed and kept once.

The prompts of a group share all their nodes, all groups share the system prompt, completions share
their equal beginnings, and a later turn shares what an earlier turn read. Nodes are appended in
the order of arrival, so the ancestors of a node are a row of a boolean matrix and not a range as in
`grpo.tree.token_tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from grpo.tree.layers import tree_forward
from grpo.tree.layout import LayerCache, Layout, cut_chunks


class NodeBuffers(Layout):
    """What the layers computed at all nodes, in buffers that are allocated once.

    Attributes:
        length: number of nodes that are computed already.
        chunks: the queries of the new nodes, cut into pieces.
        ancestors: [new, W] long; each new node, its parent and so on, -1 above a root.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self.ancestors = torch.empty(0, 0, dtype=torch.long)
        self.layers: LayerCache = {}

    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Append the new nodes' tensors to the buffers and return all nodes' (see `Layout`)."""
        call = self.call_of(layer)
        if call not in self.layers:
            self.layers[call] = tuple(
                x.new_empty(*x.shape[:dim], self.capacity, *x.shape[dim + 1 :]) for x in own
            )
        buffers, new = self.layers[call], own[0].shape[dim]
        for buffer, x in zip(buffers, own, strict=True):
            buffer.narrow(dim, self.length, new).copy_(x)
        return tuple(buffer.narrow(dim, 0, self.length + new) for buffer in buffers)

    def taps(self, layer: nn.Module, own: Tensor) -> list[Tensor]:
        """Gather along the parents (see `Layout`)."""
        (inputs,) = self.prepend_cached(layer, own, dim=0)
        return [
            inputs.index_select(0, nodes.clamp(min=0)).masked_fill(nodes[:, None] < 0, 0)
            for nodes in self.ancestors.unbind(-1)
        ]


class TreeCache:
    """A growing token tree with each node's hidden state.

    `insert` adds nodes, `compute` runs the model over those that are not computed yet.
    """

    def __init__(
        self, decoder: Any, capacity: int, device: torch.device, conv_width: int = 0
    ) -> None:
        """Make an empty cache.

        Args:
            decoder: the model without its output head, after `grpo.tree.layers.prepare`.
            capacity: largest number of nodes.
            device: the model's device.
            conv_width: taps of the model's convolutions, 0 if it has none.
        """
        self.decoder, self.capacity, self.device = decoder, capacity, device
        self.conv_width = conv_width
        self.buffers = NodeBuffers(capacity)
        self.parents: list[int] = []
        self.children: dict[tuple[int, int], int] = {}
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.sees = torch.zeros(capacity, capacity, dtype=torch.bool, device=device)
        self.hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def missing(self, ids: Sequence[int]) -> int:
        """Count the nodes that inserting these ids at the root would add."""
        node = -1
        for depth, token in enumerate(ids):
            child = self.children.get((node, token))
            if child is None:
                return len(ids) - depth
            node = child
        return 0

    def insert(self, node: int, ids: Sequence[int]) -> int:
        """Follow ids from a node (-1: the root), adding missing nodes.

        Returns:
            The node of the last id.
        """
        for token in ids:
            child = self.children.get((node, token))
            if child is None:
                child = len(self.tokens)
                self.children[node, token] = child
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(self.depths[node] + 1 if node >= 0 else 0)
                if node >= 0:
                    self.sees[child, :child] = self.sees[node, :child]
                self.sees[child, child] = True
            node = child
        return node

    def compute(self) -> int:
        """Compute the nodes without a hidden state in one forward and return their number."""
        start, stop = self.buffers.length, len(self)
        if start == stop:
            return 0
        self.buffers.chunks = cut_chunks(self._attention, start, stop, self.device)
        if self.conv_width:
            ancestors = [self._ancestors(node) for node in range(start, stop)]
            self.buffers.ancestors = torch.tensor(ancestors, device=self.device)
        tokens, depths = (
            torch.tensor(x[start:], device=self.device) for x in (self.tokens, self.depths)
        )
        new = tree_forward(self.decoder, tokens, depths, self.buffers)
        if self.hidden is None:
            self.hidden = new.new_empty(self.capacity, new.shape[1])
        self.hidden[start:stop] = new
        self.buffers.length = stop
        return stop - start

    def _attention(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Find what the nodes [start, stop) attend to (see `TokenTree.attention`)."""
        sees = self.sees[start:stop, :stop]
        keys = sees.any(0).nonzero()[:, 0]
        return keys, sees.index_select(1, keys)

    def _ancestors(self, node: int) -> list[int]:
        """List the node, its parent and so on, `conv_width` in all; -1 above the root."""
        chain = [node]
        while len(chain) < self.conv_width:
            chain.append(self.parents[chain[-1]] if chain[-1] >= 0 else -1)
        return chain

    def states(self, nodes: npt.NDArray[np.int64]) -> Tensor:
        """Return the last hidden states [R, D] of R computed nodes."""
        assert self.hidden is not None, "call compute() first"
        return self.hidden[torch.from_numpy(nodes).to(self.device)]

    def keep_shared_prefix(self) -> None:
        """Drop all nodes but the chain from the root to the first branch."""
        counts = [0] * len(self)
        for parent, _ in self.children:
            if parent >= 0:
                counts[parent] += 1
        length = next((i + 1 for i, n in enumerate(counts) if n != 1), 0)
        if sum(parent < 0 for parent, _ in self.children) != 1:
            length = 0
        self.children = {key: node for key, node in self.children.items() if node < length}
        del self.tokens[length:], self.depths[length:], self.parents[length:]
        self.sees[length:] = False
        self.buffers.length = min(self.buffers.length, length)
