"""Run a `transformers` model over a token tree.

Only attention and convolutions mix tokens: attention has to read a node's ancestors, a short
convolution the nearest of them; every other layer treats each token alone. `transformers` passes
the keyword `seq_idx` (which of several packed sequences a token belongs to) on to both kinds of
layers. Here it carries the tree's `Layout`; a call without a layout computes what it did before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from grpo.tree.attention import flex, sdpa
from grpo.tree.kernel_choice import Heads
from grpo.tree.layout import Layout

NAME = "token_tree"


def prepare(model: nn.Module) -> int:
    """Make a model's layers accept a `Layout`; calls without one are unchanged.

    Returns:
        The width of the widest convolution, 0 if there is none.

    Raises:
        ValueError: the tree does not support a kind of layer; the model is unchanged.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    convolutions: list[Any] = []
    if "conv" in kinds:
        from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

        convolutions = [m for m in model.modules() if isinstance(m, Lfm2ShortConv)]
    known = {"full_attention", *(["conv"] if convolutions else [])}
    if kinds - known:
        raise ValueError(f"its layers of kind {', '.join(sorted(kinds - known))}")
    # A window is usually wider than the rows of the load-time check, so ask the configuration.
    windowed = getattr(config, "sliding_window", None) is not None
    if windowed and getattr(config, "use_sliding_window", True):
        raise ValueError("its sliding window")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError("its attention, which does not use transformers' attention interface")
    if config._attn_implementation not in ("sdpa", NAME):
        raise ValueError(f"its attention implementation {config._attn_implementation!r}")
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    if convolutions:
        from grpo.tree.short_conv import TreeShortConv

        for module in convolutions:
            module.__class__ = TreeShortConv  # a subclass without attributes of its own
    return max((module.conv_kernel_size for module in convolutions), default=0)


def tree_forward(decoder: nn.Module, tokens: Tensor, depths: Tensor, layout: Layout) -> Tensor:
    """Compute the last hidden states of the new nodes.

    Args:
        decoder: a model without its output head, after `prepare`.
        tokens: [L] long, on the model's device, as all tensors here.
        depths: [L] long; the tokens' positions.
        layout: of the tree.

    Returns:
        [L, D].
    """
    layout.calls.clear()
    output = decoder(
        input_ids=tokens[None],
        # A mask of four dimensions keeps `transformers` from making one; the layout replaces it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        position_ids=depths[None],
        use_cache=False,
        seq_idx=layout,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden[0]


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    seq_idx: Any = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention of every new node over its ancestors and itself.

    Args:
        module: the attention layer.
        query: [1, H, L, D], of the new nodes.
        key: [1, H_kv, L, D]; H is a multiple of H_kv.
        value: [1, H_kv, L, D].
        attention_mask: for a call without a layout.
        seq_idx: a `Layout`; without one this is `transformers`' own "sdpa".
        scaling: factor of the products; None for 1 / sqrt(D).
        options: for a call without a layout.

    Returns:
        [1, L, H, D], and no attention weights.
    """
    if not isinstance(seq_idx, Layout):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    dtype = query.dtype
    if query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        # The CPU's kernel is slower in bfloat16 than in float32, backward most of all.
        query, key, value = query.float(), key.float(), value.float()
    key, value = seq_idx.prepend_cached(module, key, value, dim=2)
    mask = seq_idx.block_mask(Heads.of(query, key, value))
    if mask is None:
        output = sdpa(query, key, value, seq_idx.chunks, scaling)
    else:
        output = flex(query, key, value, mask, scaling)
    return output.transpose(1, 2).to(dtype), None
