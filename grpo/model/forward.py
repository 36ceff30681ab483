"""The two forward passes of the update, from tokens to last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from grpo.model.head import OutputHead
from grpo.model.logprobs import RECOMPUTED
from grpo.transfer import to_device
from grpo.tree.block_mask import block_mask
from grpo.tree.chunks import cut_chunks
from grpo.tree.kernel_choice import Heads, least_nodes_for_flex
from grpo.tree.layers import tree_forward
from grpo.tree.layout import Chunk, LayerCache, Layout
from grpo.tree.token_tree import TokenTree, build_tree
from grpo.types import TokenBatch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ForwardMode = Literal["tree", "padded"]


class ForwardPlan(NamedTuple):
    """How a model computes log-probabilities: what the check at load time found to be right.

    Attributes:
        mode: "tree" computes every distinct prefix once, "padded" every row by itself.
        use_cache: False if decoding has to compute every token again (padded rows only).
        conv_width: width of the model's short convolutions, 0 if it has none.
        head: from last hidden states to logits.
        max_length: the longest prompt and completion together, in tokens.
        packed: True if padded rows can be computed without their padding.
    """

    mode: ForwardMode
    use_cache: bool
    conv_width: int
    head: OutputHead
    max_length: int
    packed: bool = False


class TreeLayout(Layout):
    """The layout of a whole `TokenTree`, made once for all layers.

    The first nodes may have been computed before: the layers then get the others alone, and
    read what they computed at the first ones from `cached`.

    Attributes:
        first: number of nodes that are computed already.
        chunks: the queries of the attention, cut into pieces.
        ancestors: [M - first, W] long; each node, its parent and so on, M where there is none.
        cached: what the layers computed at the first nodes; empty if there are none.
        cache_out: filled with what the layers compute now; None if nobody reads it.
    """

    def __init__(
        self,
        tree: TokenTree,
        width: int,
        device: torch.device,
        *,
        first: int = 0,
        cached: LayerCache | None = None,
        cache_out: LayerCache | None = None,
    ) -> None:
        """Lay out a tree.

        Args:
            tree: M nodes, on the CPU.
            width: W, the widest convolution's kernel, or 0.
            device: the model's device.
            first: number of nodes, from the root on, that are computed already.
            cached: what the layers computed at them.
            cache_out: receives what the layers compute now.
        """
        super().__init__()
        self._tree, self._device = tree, device
        (self.ancestors,) = to_device([tree.ancestors(width)[first:]], device)
        self.first, self.cached, self.cache_out = first, cached or {}, cache_out

    @cached_property
    def chunks(self) -> Sequence[Chunk]:  # type: ignore[override]
        """The queries of the attention, cut into pieces when they are first read."""
        return cut_chunks(self._tree.attention, self.first, len(self._tree), self._device)

    def block_mask(self, heads: Heads) -> BlockMask | None:
        """Return the block mask where flex_attention was measured to be faster (see `Layout`)."""
        least = least_nodes_for_flex(heads)
        return None if least is None or len(self._tree) < least else self._block_mask

    @cached_property
    def _block_mask(self) -> BlockMask:
        return block_mask(self._tree.ends, self.first, self._device)

    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Put the first nodes' tensors before the others' (see `Layout`)."""
        call = self.call_of(layer)
        if self.cache_out is not None:
            self.cache_out[call] = own
        if call not in self.cached:
            return own
        pairs = zip(self.cached[call], own, strict=True)
        return tuple(torch.cat(pair, dim) for pair in pairs)

    def taps(self, layer: nn.Module, own: Tensor) -> list[Tensor]:
        """Gather along the parents (see `Layout`)."""
        (inputs,) = self.prepend_cached(layer, own, dim=0)
        inputs = F.pad(inputs, (0, 0, 0, 1))  # row M: the zeros above a root
        return [inputs.index_select(0, nodes) for nodes in self.ancestors.unbind(-1)]


class SharedPrefix:
    """The tokens that begin every row, computed once for all micro-batches of a step.

    A micro-batch reads detached copies of what each layer computed at the prefix, and its
    backward pass adds to their gradients; `backward` then propagates the sum through the prefix.
    The gradient is that of one forward pass over all rows: every distinct token is computed once,
    however small the micro-batches are.

    Attributes:
        tokens: [L] long.
    """

    def __init__(self, decoder: nn.Module, tokens: Tensor, conv_width: int) -> None:
        """Compute the prefix.

        Args:
            decoder: the model without its output head, `prepare`d.
            tokens: [L] long, L at least 1.
            conv_width: what `prepare` returned.
        """
        self.tokens = tokens
        tree = build_tree([tokens.tolist()])
        device = next(decoder.parameters()).device
        cache: LayerCache = {}
        hidden = _forward(decoder, tree, TreeLayout(tree, conv_width, device, cache_out=cache))
        self._computed = [hidden, *(x for tensors in cache.values() for x in tensors)]
        self._copies = [x.detach().requires_grad_(x.requires_grad) for x in self._computed]
        copies = iter(self._copies)
        self.hidden = next(copies)
        self.cached = {call: tuple(next(copies) for _ in own) for call, own in cache.items()}

    def backward(self) -> None:
        """Propagate the micro-batches' summed gradient through the prefix; call it once."""
        read = [n for n, copy in enumerate(self._copies) if copy.grad is not None]
        gradients = [self._copies[n].grad for n in read]
        torch.autograd.backward([self._computed[n] for n in read], gradients)


def tree_hidden(
    decoder: nn.Module, tree: TokenTree, conv_width: int, prefix: SharedPrefix | None = None
) -> Tensor:
    """Compute the last hidden states [M, D] of a tree's nodes in one forward pass.

    Args:
        decoder: the model without its output head, `prepare`d.
        tree: on the CPU.
        conv_width: what `prepare` returned.
        prefix: the tokens that begin every row, if they are computed already.
    """
    device = next(decoder.parameters()).device
    if prefix is None:
        return _forward(decoder, tree, TreeLayout(tree, conv_width, device))
    first = len(prefix.tokens)  # depth first: the prefix's nodes are the first ones
    layout = TreeLayout(tree, conv_width, device, first=first, cached=prefix.cached)
    return torch.cat([prefix.hidden, _forward(decoder, tree, layout)])


def _forward(decoder: nn.Module, tree: TokenTree, layout: TreeLayout) -> Tensor:
    device, first = layout.ancestors.device, layout.first
    tokens, depths = to_device((tree.tokens[first:], tree.depths[first:]), device)
    return tree_forward(decoder, tokens, depths, layout)


def padded_hidden(decoder: nn.Module, batch: TokenBatch, width: int) -> Tensor:
    """Compute the last hidden states [N, width, D] of padded rows of up to `width` tokens."""
    output = decoder(
        input_ids=batch.input_ids[:, :width],
        attention_mask=batch.token_mask[:, :width].long(),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


@contextmanager
def recomputed_layers(decoder: nn.Module) -> Iterator[None]:
    """Within this context a layer keeps only its input, and is recomputed in the backward pass.

    The layers stay in eval mode: `transformers`' own switch would turn their dropout on.

    Paper: Training deep nets with sublinear memory cost, arXiv 1604.06174.

    Raises:
        ValueError: the model does not mark its layers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(decoder).__name__} has no layers that can be recomputed")
    for layer in layers:  # an attribute of the instance hides the class's method
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputed(layer: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a layer's forward so that it runs again in the backward pass."""
    layout = options.get("seq_idx")
    if not isinstance(layout, Layout):
        return checkpoint(layer, *args, **options, **RECOMPUTED)
    calls = layout.calls.copy()

    def run(*args: Any, **options: Any) -> Any:
        layout.calls = calls.copy()  # the layer reads what it read then, whatever ran since
        return layer(*args, **options)

    return checkpoint(run, *args, **options, **RECOMPUTED)
