"""The update's passes through the layers as CUDA graphs, one per size of tree.

A GPU computes the kernels of a small model faster than Python can launch them: an update of a
135M model is some 7,000 launches. A CUDA graph launches all of them at once. Its shapes are fixed,
so a tree is padded to the next size with nodes that attend to themselves alone and whose gradient
is zero: values and gradients are those of `grpo.model.forward.tree_hidden`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grpo.model.forward import TreeLayout
from grpo.tree.capture import Graphs, Pool, capture, warm_up
from grpo.tree.kernel_choice import Heads
from grpo.tree.layers import tree_forward
from grpo.tree.layout import Chunk
from grpo.tree.token_tree import TokenTree, build_tree

STEP, LARGEST = 256, 4096
"""Sizes are multiples of STEP nodes. Trees of more than LARGEST nodes have no graph."""


class PaddedLayout(TreeLayout):
    """The layout of a tree in tensors of a fixed size, without a look at their values."""

    def __init__(self, ends: Tensor, ancestors: Tensor, dtype: torch.dtype) -> None:
        """Lay out n nodes.

        Args:
            ends: [n] long; one past a node's last descendant, see `TokenTree`.
            ancestors: [n, W] long; each node, its parent and so on, n where there is none.
            dtype: of the attention.
        """
        super(TreeLayout, self).__init__()  # `Layout`'s: there is no `TokenTree` to look at
        node = torch.arange(len(ends), device=ends.device)
        sees = (node <= node[:, None]) & (node[:, None] < ends)
        # As numbers to add: SDPA would make them of booleans in each layer.
        mask = torch.zeros(sees.shape, dtype=dtype, device=ends.device)
        self.chunks = [Chunk(0, len(ends), None, mask.masked_fill(~sees, -torch.inf))]
        self.ancestors, self.first, self.cached, self.cache_out = ancestors, 0, {}, None

    def block_mask(self, heads: Heads) -> None:
        """Use SDPA: up to the largest size of a graph flex_attention has little to gain."""


class TreeInput:
    """What a pass reads of a tree, padded to n nodes, in tensors that stay where they are.

    Attributes:
        tokens, depths: [n] long.
        ends, ancestors: see `PaddedLayout`.
    """

    def __init__(self, size: int, width: int, device: torch.device) -> None:
        """Make the tensors of n = `size` nodes and convolutions of `width` taps."""
        self._rows = torch.zeros(3 + width, size, dtype=torch.long, device=device)
        self.tokens, self.depths, self.ends = self._rows[:3]
        self.ancestors = self._rows[3:].t()

    def fill(self, tree: TokenTree) -> None:
        """Upload a tree of at most n nodes, in one copy."""
        (width, size), nodes = self._rows.shape, len(tree)
        rows = torch.zeros(width, size, dtype=torch.long, pin_memory=self._rows.is_cuda)
        rows[0, :nodes], rows[1, :nodes], rows[2, :nodes] = tree.tokens, tree.depths, tree.ends
        rows[2, nodes:] = torch.arange(nodes, size) + 1  # a padding node attends to itself
        ancestors = tree.ancestors(width - 3)
        rows[3:] = size
        rows[3:, :nodes] = torch.where(ancestors == nodes, size, ancestors).t()
        self._rows.copy_(rows, non_blocking=True)


class TreeGraphs:
    """Captures a pass when a size is met for the first time, and replays it from then on.

    The graphs share their memory: a backward pass must follow its own forward pass.

    Attributes:
        variant: what the model computes now, such as "reference"; each has graphs of its own.
        latest: the forward pass whose activations are in memory.
    """

    def __init__(self, decoder: nn.Module, conv_width: int) -> None:
        """Take a model on a CUDA device.

        Args:
            decoder: the model without its output head, `prepare`d. Its weights may change in
                place only.
            conv_width: what `prepare` returned.
        """
        self.decoder, self.conv_width = decoder, conv_width
        self.variant, self.latest = "", object()
        self._graphs: Graphs[_Graph] = Graphs(decoder)

    def hidden(self, tree: TokenTree) -> Tensor | None:
        """Compute the last hidden states of a tree's nodes.

        Args:
            tree: M nodes, on the CPU.

        Returns:
            [n, D], n at least M, to be read before the next call; None if there is no graph for
            this tree, because it is large or because the model cannot be captured.

        Raises:
            torch.OutOfMemoryError: a new graph's tensors do not fit. All graphs are dropped.
        """
        if len(tree) > LARGEST:
            return None
        size = -(-len(tree) // STEP) * STEP
        key = size, torch.is_grad_enabled(), self.variant
        graph = self._graphs.get(key, lambda: self._capture(size))
        if graph is None:
            return None
        graph.tree.fill(tree)
        hidden: Tensor = _Replay.apply(graph.anchor, graph, self)  # type: ignore[no-untyped-call]
        return hidden

    def _capture(self, size: int) -> _Graph:
        tree = TreeInput(size, self.conv_width, next(self.decoder.parameters()).device)
        tree.fill(build_tree([]))
        return _Graph(self.decoder, tree, self._graphs.pool)


class _Graph:
    """One size's forward pass, and, where gradients are enabled, its backward pass.

    Attributes:
        tree: what the next replay reads.
        hidden: [n, D], what the last replay computed.
        gradient: [n, D], that of `hidden`, which the backward pass reads.
        anchor: requires a gradient if the pass has a backward pass.
    """

    def __init__(self, decoder: Any, tree: TreeInput, pool: Pool) -> None:
        parameters = [p for p in decoder.parameters() if p.requires_grad]

        def forward() -> Tensor:
            layout = PaddedLayout(tree.ends, tree.ancestors, decoder.dtype)
            return tree_forward(decoder, tree.tokens, tree.depths, layout)

        def backward(hidden: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
            if not hidden.requires_grad:
                return []
            found = torch.autograd.grad(hidden, parameters, self.gradient, allow_unused=True)
            return [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]

        def run() -> None:
            hidden = forward()
            self.gradient = torch.zeros_like(hidden)
            backward(hidden)

        self.tree, device = tree, tree.tokens.device
        warm_up(run, device)
        self.forward, hidden = capture(forward, pool, device)
        if hidden.requires_grad:
            self.backward, self.gradients = capture(lambda: backward(hidden), pool, device)
        self.anchor = torch.zeros((), device=hidden.device, requires_grad=hidden.requires_grad)
        self.hidden = hidden.detach()


class _Replay(torch.autograd.Function):
    """Replays a graph; adds to the parameters' gradients in its backward pass, as autograd does."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: _Graph, graphs: TreeGraphs) -> Tensor:
        graph.forward.replay()
        ctx.graph, ctx.graphs, ctx.run = graph, graphs, object()
        graphs.latest = ctx.run
        return graph.hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        if ctx.graphs.latest is not ctx.run:
            raise RuntimeError("a backward pass must follow its own forward pass: another one ran")
        ctx.graph.gradient.copy_(gradient)
        ctx.graph.backward.replay()
        sums = [(p.grad, g) for p, g in ctx.graph.gradients if p.grad is not None]
        first = [(p, g) for p, g in ctx.graph.gradients if p.grad is None]
        if sums:
            torch._foreach_add_(*map(list, zip(*sums, strict=True)))
        if first:  # copies, because the next replay writes into the graph's own tensors
            for p, gradient in first:
                p.grad = torch.empty_like(gradient)
            torch._foreach_copy_([p.grad for p, _ in first], [g for _, g in first])
        return None, None, None
