"""The two roads to the last hidden states, and the choice between them at load time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.tree import TokenTree, build_tree
from grpo.tree_layers import TreeLayout, prepare
from grpo.types import TokenBatch

Road = Literal["tree", "padded"]


def tree_hidden(decoder: nn.Module, tree: TokenTree, conv_width: int) -> Tensor:
    """Last hidden states [M, D] of a tree's nodes, in one forward.

    Args:
        decoder: the model without its output head, `prepare`d.
        tree: on the CPU.
        conv_width: what `prepare` returned.
    """
    device = next(decoder.parameters()).device
    output = decoder(
        input_ids=tree.tokens[None].to(device),
        # Of four dimensions, so `transformers` makes no mask; the layout replaces it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        position_ids=tree.depths[None].to(device),
        use_cache=False,
        seq_idx=TreeLayout(tree, conv_width, device),
    )
    return output.last_hidden_state[0]


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
def choose_road(model: Any, wanted: Road | Literal["auto"]) -> tuple[Road, int]:
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
    trunk, *tails = ids.view(4, 6).tolist()
    rows = [trunk + tail for tail in tails] + [trunk[:3] + tail for tail in tails]
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
                  "(road='padded')", stacklevel=3)  # fmt: skip
    return "padded", 0
