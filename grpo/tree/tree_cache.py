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

from grpo.transfer import to_device
from grpo.tree.chunks import cut_chunks
from grpo.tree.layers import tree_forward
from grpo.tree.layout import LayerCache, Layout


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
                x.new_zeros(*x.shape[:dim], self.capacity, *x.shape[dim + 1 :]) for x in own
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
        # [i, j]: node j is an ancestor of node i, or i itself. In main memory, whatever the device.
        self.sees = np.zeros((capacity, capacity), dtype=bool)
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
        """Follow ids from a node (-1: the root), adding missing nodes; the device does nothing.

        Returns:
            The node of the last id.
        """
        for position, token in enumerate(ids):
            child = self.children.get((node, token))
            if child is None:
                return self._append(node, ids[position:])
            node = child
        return node

    def _append(self, node: int, ids: Sequence[int]) -> int:
        """Add a chain of new nodes below a node and return its last one."""
        first, stop = len(self), len(self) + len(ids)
        if stop > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} nodes, got {stop}")
        parents = [node, *range(first, stop - 1)]
        depth = self.depths[node] + 1 if node >= 0 else 0
        self.children.update(zip(zip(parents, ids, strict=True), range(first, stop), strict=True))
        self.tokens += ids
        self.parents += parents
        self.depths += range(depth, depth + len(ids))
        if node >= 0:
            self.sees[first:stop, :first] = self.sees[node, :first]
        self.sees[first:stop, first:stop] = np.tri(len(ids), dtype=bool)
        return stop - 1

    def compute(self) -> int:
        """Compute the nodes without a hidden state in one forward and return their number."""
        start, stop = self.buffers.length, len(self)
        if start == stop:
            return 0
        self._run(start, stop)
        self.buffers.length = stop
        return stop - start

    def _run(self, start: int, stop: int) -> None:
        """Compute the nodes [start, stop) into the buffers."""
        sees = self.sees[start:stop, :stop]
        self.buffers.chunks = cut_chunks(self._attention, start, stop, self.device, sees)
        tokens, depths, self.buffers.ancestors = to_device(self._new(start, stop), self.device)
        new = tree_forward(self.decoder, tokens, depths, self.buffers)
        if self.hidden is None:
            self.hidden = new.new_zeros(self.buffers.capacity, new.shape[1])
        self.hidden[start:stop] = new

    def _new(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, depths and ancestors of the nodes [start, stop), on the CPU."""
        ancestors = [self._ancestors(node) for node in range(start, stop)]
        lists = self.tokens[start:stop], self.depths[start:stop], ancestors
        tokens, depths, above = (torch.tensor(x, dtype=torch.long) for x in lists)
        return tokens, depths, above

    def _attention(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Find what the nodes [start, stop) attend to (see `TokenTree.attention`)."""
        sees = self.sees[start:stop, :stop]
        keys = np.flatnonzero(sees.any(0))
        return torch.from_numpy(keys), torch.from_numpy(sees.take(keys, axis=1))

    def _ancestors(self, node: int) -> list[int]:
        """List the node, its parent and so on, `conv_width` in all; -1 above the root."""
        chain = [node]
        while len(chain) < self.conv_width:
            chain.append(self.parents[chain[-1]] if chain[-1] >= 0 else -1)
        return chain[: self.conv_width]

    def states(self, nodes: npt.NDArray[np.int64]) -> Tensor:
        """Return the last hidden states [R, D] of R computed nodes."""
        assert self.hidden is not None, "call compute() first"
        (rows,) = to_device([torch.from_numpy(nodes)], self.device)
        return self.hidden[rows]

    def keep_shared_prefix(self) -> None:
        """Drop all nodes but the chain from the root to the first branch."""
        counts = [0] * len(self)
        for parent, _ in self.children:
            if parent >= 0:
                counts[parent] += 1
        length = next((i + 1 for i, n in enumerate(counts) if n != 1), 0)
        if sum(parent < 0 for parent, _ in self.children) != 1:
            length = 0
        self._keep(length)

    def clear(self) -> None:
        """Drop all nodes, whose memory is used again."""
        self._keep(0)

    def _keep(self, length: int) -> None:
        self.children = {key: node for key, node in self.children.items() if node < length}
        del self.tokens[length:], self.depths[length:], self.parents[length:]
        self.sees[length:] = False
        self.buffers.length = min(self.buffers.length, length)
