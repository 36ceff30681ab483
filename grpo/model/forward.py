"""The two roads to the last hidden states, and the choice between them at load time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.tree.layers import prepare, tree_forward
from grpo.tree.layout import LayerCache, TreeLayout
from grpo.tree.token_tree import TokenTree, build_tree
from grpo.types import TokenBatch

ForwardMode = Literal["tree", "padded"]


class SharedPrefix:
    """The tokens that begin every row, computed once for all micro-batches of a step.

    A micro-batch reads detached copies of what the prefix left in each layer, and its
    backward adds to their gradients; `backward` then carries the sum through the prefix. The
    gradient is that of one forward over all rows: every distinct token is computed once,
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
        left: LayerCache = {}
        hidden = _forward(decoder, tree, TreeLayout(tree, conv_width, device, left=left))
        self._left = [hidden, *(x for states in left.values() for x in states)]
        self._copies = [x.detach().requires_grad_(x.requires_grad) for x in self._left]
        copies = iter(self._copies)
        self.hidden = next(copies)
        self.past = {layer: tuple(next(copies) for _ in states) for layer, states in left.items()}

    def backward(self) -> None:
        """Carry the gradient that the micro-batches left through the prefix; once."""
        read = [n for n, copy in enumerate(self._copies) if copy.grad is not None]
        gradients = [self._copies[n].grad for n in read]
        torch.autograd.backward([self._left[n] for n in read], gradients)


def tree_hidden(
    decoder: nn.Module, tree: TokenTree, conv_width: int, prefix: SharedPrefix | None = None
) -> Tensor:
    """Last hidden states [M, D] of a tree's nodes, in one forward.

    Args:
        decoder: the model without its output head, `prepare`d.
        tree: on the CPU.
        conv_width: what `prepare` returned.
        prefix: begins every row of the tree.
    """
    device = next(decoder.parameters()).device
    if prefix is None:
        return _forward(decoder, tree, TreeLayout(tree, conv_width, device))
    first = len(prefix.tokens)  # depth first: the prefix's nodes are the first ones
    layout = TreeLayout(tree, conv_width, device, first=first, past=prefix.past)
    return torch.cat([prefix.hidden, _forward(decoder, tree, layout)])


def _forward(decoder: nn.Module, tree: TokenTree, layout: TreeLayout) -> Tensor:
    device, first = layout.ancestors.device, layout.first
    return tree_forward(
        decoder, tree.tokens[first:].to(device), tree.depths[first:].to(device), layout
    )


def padded_hidden(decoder: nn.Module, batch: TokenBatch) -> Tensor:
    """Last hidden states [N, T, D] of padded rows."""
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.token_mask.long(),
        use_cache=False,
    )
    return output.last_hidden_state


@contextmanager
def recomputed_layers(decoder: Any) -> Iterator[None]:
    """Within it each layer keeps its input alone, and is computed again in the backward pass.

    Paper: Training deep nets with sublinear memory cost, arXiv 1604.06174.
    """
    layers = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    decoder.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True  # `transformers` asks for it; what is inside stays in eval mode
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        decoder.gradient_checkpointing_disable()


@torch.no_grad()
def choose_forward(model: Any, wanted: ForwardMode | Literal["auto"]) -> tuple[ForwardMode, int]:
    """Hold the roads against the model's own logits on a probe, and choose.

    Args:
        model: a `transformers` causal language model; `prepare`d if the tree is chosen.
        wanted: "auto" takes the tree where the model supports it, and warns where it does not.

    Returns:
        The road, and the width of the model's convolutions (0 off the tree).

    Raises:
        ValueError: no road, or not the wanted one, gives the model's logits.
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
        reason = f"it does not support {unsupported}"
    if wanted == "tree":
        raise ValueError(f"the token tree does not fit {name}: {reason}")
    warnings.warn(f"the token tree does not fit {name}: {reason}; it computes every row whole "
                  "(forward='padded')", stacklevel=4)  # fmt: skip
    return "padded", 0
