"""Two forward passes to the last hidden states, and the choice between them at load time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo.tree.layers import prepare, tree_forward
from grpo.tree.layout import LayerCache, Layout, cut_chunks
from grpo.tree.token_tree import TokenTree, build_tree
from grpo.types import TokenBatch

ForwardMode = Literal["tree", "padded"]


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
        self.chunks = cut_chunks(tree.attention, first, len(tree), device)
        self.ancestors = tree.ancestors(width)[first:].to(device)
        self.first, self.cached, self.cache_out = first, cached or {}, cache_out

    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Put the first nodes' tensors before the others' (see `Layout`)."""
        if self.cache_out is not None:
            self.cache_out[layer] = own
        if layer not in self.cached:
            return own
        pairs = zip(self.cached[layer], own, strict=True)
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
        self.cached = {layer: tuple(next(copies) for _ in own) for layer, own in cache.items()}

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
    return tree_forward(
        decoder, tree.tokens[first:].to(device), tree.depths[first:].to(device), layout
    )


def padded_hidden(decoder: nn.Module, batch: TokenBatch) -> Tensor:
    """Compute the last hidden states [N, T, D] of padded rows."""
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.token_mask.long(),
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


@contextmanager
def recomputed_layers(decoder: Any) -> Iterator[None]:
    """Within this context a layer keeps only its input, and is recomputed in the backward pass.

    Paper: Training deep nets with sublinear memory cost, arXiv 1604.06174.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    decoder.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True  # `transformers` requires it; the modules inside stay in eval mode
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        decoder.gradient_checkpointing_disable()


@torch.no_grad()
def choose_forward(model: Any, wanted: ForwardMode | Literal["auto"]) -> tuple[ForwardMode, int]:
    """Compare the forward passes with the model's own logits on a few rows; choose one.

    Args:
        model: a `transformers` causal language model; `prepare`d if the tree is chosen.
        wanted: "auto" chooses the tree where the model supports it, and warns where it does not.

    Returns:
        The forward pass, and the width of the model's convolutions (0 for padded rows).

    Raises:
        ValueError: no forward pass, or not the wanted one, gives the model's logits.
    """
    name = type(model).__name__
    decoder, head, device = model.get_decoder(), model.get_output_embeddings(), model.device
    ids = torch.arange(1, 25).mul(7919).remainder(model.config.vocab_size)
    prefix, *tails = ids.view(4, 6).tolist()
    rows = [prefix + tail for tail in tails] + [prefix[:3] + tail for tail in tails]
    alone = [torch.tensor([row], device=device) for row in rows]
    truth = torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in alone]).float()
    bound = 0.1 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3

    def agrees(hidden: Tensor) -> bool:
        error = (head(hidden).float() - truth).std(-1) / truth.std()
        return bool(error.max() < bound)

    hidden = [decoder(input_ids=row, use_cache=False).last_hidden_state[0] for row in alone]
    if not agrees(torch.cat(hidden)):
        raise ValueError(
            f"{name} does more between its last hidden states and its logits than its output "
            "layer; such models are not supported"
        )
    if wanted == "padded":
        return "padded", 0
    try:
        conv_width = prepare(decoder)
        tree = build_tree(rows)
        if agrees(tree_hidden(decoder, tree, conv_width)[tree.nodes[tree.nodes >= 0].to(device)]):
            return "tree", conv_width
        reason = "it does not give the model's own logits"
    except ValueError as unsupported:
        reason = f"the tree does not support {unsupported}"
    if wanted == "tree":
        raise ValueError(f"the token tree does not fit {name}: {reason}")
    text = f"the token tree does not fit {name}: {reason}; every row is computed by itself"
    warnings.warn(f"{text} (forward=padded)", stacklevel=4)
    return "padded", 0
