"""The tree cache's passes over new nodes as CUDA graphs, one per number of nodes and slots.

A decoding step of a few tokens is bound by launching its kernels (see `grpo.model.graphs`). All
shapes of a graph are fixed: new nodes are padded to the next size, and attend to the buffers' first
slots, up to the next size too, under a mask. What padding computes goes to a slot after the last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grpo.tree.capture import Graphs, capture, warm_up
from grpo.tree.layers import tree_forward
from grpo.tree.layout import Chunk
from grpo.tree.tree_cache import NodeBuffers, TreeCache

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Numbers of new nodes that have a graph; larger passes are bound by computing."""

FEWEST_KEYS = 512
"""A pass reads that many of the buffers' slots, doubled until all used ones are among them."""


class SlotBuffers(NodeBuffers):
    """Buffers that a pass of fixed shapes writes to and reads.

    Attributes:
        slots: [n] long; where each new node goes, the last slot for padding. None to append.
        keys: number of slots that the new nodes read.
    """

    slots: Tensor | None = None
    keys = 0

    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Write the new nodes' tensors to their slots and return the first (see `Layout`)."""
        if self.slots is None:
            return super().prepend_cached(layer, *own, dim=dim)
        buffers = self.layers[self.call_of(layer)]
        for buffer, x in zip(buffers, own, strict=True):
            buffer.index_copy_(dim, self.slots, x)
        return tuple(buffer.narrow(dim, 0, self.keys) for buffer in buffers)


class NewNodes:
    """What a pass reads of n nodes, the new ones and padding, in tensors that stay where they are.

    Attributes:
        tokens, depths, slots: [n] long.
        ancestors: [n, W] long; see `NodeBuffers`.
        sees: [n, K] bool; see `Chunk.mask`. Padding sees the first slot.
    """

    def __init__(
        self, size: int, keys: int, width: int, device: torch.device, padding_slot: int
    ) -> None:
        """Make the tensors for n = `size` nodes and K = `keys` slots: all padding, for now."""
        self._rows = torch.zeros(3 + width, size, dtype=torch.long, device=device)
        self.tokens, self.depths, self.slots = self._rows[:3]
        self.ancestors = self._rows[3:].t()
        self.sees = torch.zeros(size, keys, dtype=torch.bool, device=device)
        self._padding_slot = padding_slot
        none = torch.empty(0, dtype=torch.long)
        self.fill(0, none, none, none.view(0, width), torch.empty(0, 0, dtype=torch.bool))

    def fill(
        self, start: int, tokens: Tensor, depths: Tensor, ancestors: Tensor, sees: Tensor
    ) -> None:
        """Upload the nodes from `start` on: [L], [L], [L, W] and [L, start + L], on the CPU."""
        new, pinned = len(tokens), self.sees.is_cuda
        rows = torch.zeros(self._rows.shape, dtype=torch.long, pin_memory=pinned)
        mask = torch.zeros(self.sees.shape, dtype=torch.bool, pin_memory=pinned)
        rows[0, :new], rows[1, :new] = tokens, depths
        rows[2], rows[2, :new] = self._padding_slot, torch.arange(start, start + new)
        rows[3:], rows[3:, :new] = -1, ancestors.t()
        mask[:new, : start + new], mask[new:, 0] = sees, True
        self._rows.copy_(rows, non_blocking=pinned)
        self.sees.copy_(mask, non_blocking=pinned)


class GraphedTreeCache(TreeCache):
    """A `TreeCache` on a CUDA device; made once, and cleared when the policy changes.

    Its graphs read the model's weights where they are: those may change in place only.
    """

    def __init__(
        self, decoder: Any, capacity: int, device: torch.device, conv_width: int = 0
    ) -> None:
        """Make an empty cache (see `TreeCache`)."""
        super().__init__(decoder, capacity, device, conv_width)
        slots = -(-(capacity + 1) // 64) * 64  # attention kernels like round numbers
        self.buffers: SlotBuffers = SlotBuffers(slots)
        self._graphs: Graphs[tuple[NewNodes, torch.cuda.CUDAGraph]] = Graphs(decoder)

    def _run(self, start: int, stop: int) -> None:
        size = next((n for n in SIZES if n >= stop - start), None)
        captured = None
        if size is not None and self.hidden is not None:  # the first pass makes the buffers
            keys = FEWEST_KEYS
            while keys < stop:
                keys *= 2
            key = size, min(keys, self.buffers.capacity)
            captured = self._graphs.get(key, lambda: self._capture(*key))
        if captured is None:
            super()._run(start, stop)
            return
        nodes, graph = captured
        nodes.fill(start, *self._new(start, stop), torch.from_numpy(self.sees[start:stop, :stop]))
        graph.replay()

    def _capture(self, size: int, keys: int) -> tuple[NewNodes, torch.cuda.CUDAGraph]:
        nodes = self.make_nodes(size, keys)
        try:
            warm_up(lambda: self.compute_slots(nodes), self.device)
            graph, _ = capture(lambda: self.compute_slots(nodes), self._graphs.pool, self.device)
        finally:
            self.buffers.slots = None
        return nodes, graph

    def make_nodes(self, size: int, keys: int) -> NewNodes:
        """Make the input of a pass over `size` nodes that read `keys` slots."""
        return NewNodes(size, keys, self.conv_width, self.device, self.buffers.capacity - 1)

    def compute_slots(self, nodes: NewNodes) -> None:
        """Compute nodes into the buffers; no shape depends on their values."""
        assert self.hidden is not None
        buffers, dtype = self.buffers, self.hidden.dtype
        mask = torch.zeros(nodes.sees.shape, dtype=dtype, device=self.device)
        mask = mask.masked_fill(~nodes.sees, -torch.inf)
        buffers.slots, buffers.keys = nodes.slots, nodes.sees.shape[1]
        buffers.ancestors = nodes.ancestors
        buffers.chunks = [Chunk(0, len(nodes.tokens), None, mask)]
        new = tree_forward(self.decoder, nodes.tokens, nodes.depths, buffers)
        self.hidden.index_copy_(0, nodes.slots, new)
