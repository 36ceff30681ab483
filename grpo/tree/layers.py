"""The layers of a `transformers` model in which a token sees others, run over a token tree.

Attention looks at a node's ancestors, a short convolution at the nearest of them; all other
layers do not care which tokens stand beside each other. `transformers` hands the keyword
`seq_idx` (which of several packed sequences a token is in) down to both kinds of layers.
Here it carries a `Layout` of a tree, the packed sequences' more general sister; a call without one
does what it did before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from grpo.tree.layout import Layout

NAME = "token_tree"


def prepare(model: nn.Module) -> int:
    """Teach a model's layers to take a `Layout`; without one they do as before.

    Returns:
        The width of the widest convolution, 0 if there is none.

    Raises:
        ValueError: a kind of layer that a tree does not support; the model is unchanged.
    """
    config: Any = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    convolutions = [m for m in model.modules() if isinstance(m, Lfm2ShortConv)]
    known = {"full_attention", *(["conv"] if convolutions else [])}
    if kinds - known:
        raise ValueError(f"its layers of kind {', '.join(sorted(kinds - known))}")
    # A window need not show on rows as short as a probe's, so the configuration is believed.
    windowed = getattr(config, "sliding_window", None) is not None
    if windowed and getattr(config, "use_sliding_window", True):
        raise ValueError("its sliding window")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError("its attention, which is not transformers' interface")
    if config._attn_implementation not in ("sdpa", NAME):
        raise ValueError(f"its attention implementation {config._attn_implementation!r}")
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    for module in convolutions:
        module.__class__ = TreeShortConv  # a subclass without attributes of its own
    return max((module.conv_kernel_size for module in convolutions), default=0)


def tree_forward(decoder: nn.Module, tokens: Tensor, depths: Tensor, layout: Layout) -> Tensor:
    """Last hidden states [L, D] of the nodes that are computed now.

    Args:
        decoder: a model without its output head, `prepare`d.
        tokens: [L] long, on the model's device like the others.
        depths: [L] long; their positions.
        layout: of the tree.
    """
    output = decoder(
        input_ids=tokens[None],
        # Of four dimensions, so `transformers` makes no mask; the layout replaces it.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
        position_ids=depths[None],
        use_cache=False,
        seq_idx=layout,
    )
    return output.last_hidden_state[0]


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
    """Scaled dot-product attention of every node over its ancestors and itself.

    Args:
        module: the attention layer.
        query: [1, H, L, D], of the nodes that are not computed already.
        key: [1, H_kv, L, D]; H is a multiple of H_kv.
        value: [1, H_kv, L, D].
        attention_mask: for a call without a layout.
        seq_idx: a `Layout`; without one this is `transformers`' own "sdpa".
        scaling: of the products; 1 / sqrt(D) by default.
        options: for a call without a layout.

    Returns:
        [1, L, H, D], and no attention weights.
    """
    if not isinstance(seq_idx, Layout):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    dtype, grouped = query.dtype, query.device.type == "cpu"
    if grouped and dtype in (torch.bfloat16, torch.float16):
        # The CPU's kernel is slower in bfloat16 than in float32, backward most of all.
        query, key, value = query.float(), key.float(), value.float()
    key, value = seq_idx.prepend_cached(module, key, value, dim=2)

    def seen(x: Tensor, keys: Tensor) -> Tensor:
        x = x.index_select(2, keys)
        # CUDA's fast kernels take a mask or grouped heads, not both.
        return x if grouped else x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)

    parts = [
        F.scaled_dot_product_attention(
            query[:, :, start:stop],
            seen(key, keys),
            seen(value, keys),
            attn_mask=mask,
            scale=scaling,
            enable_gqa=grouped,
        )
        for start, stop, keys, mask in seq_idx.chunks
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).to(dtype), None


class TreeShortConv(Lfm2ShortConv):
    """LFM2's gated short convolution, its inputs gathered along the parents.

    `y = W_out (C * conv(B * x))` with `B, C, x = W_in h`, where tap k of the convolution
    reads the node's k-th ancestor, and 0 above the root.
    """

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        seq_idx: Any = None,
    ) -> Tensor:
        """Map [1, L, D] to [1, L, D]."""
        if not isinstance(seq_idx, Layout):
            return super().forward(hidden_states, past_key_values, attention_mask, seq_idx)
        b, c, x = self.in_proj(hidden_states)[0].chunk(3, dim=-1)
        # The kernel's last weight is the node's own.
        weights = self.conv.weight[:, 0].flip(-1).unbind(-1)
        taps = zip(weights, seq_idx.taps(self, b * x), strict=False)
        mixed = sum(weight * inputs for weight, inputs in taps)
        if self.conv.bias is not None:
            mixed = mixed + self.conv.bias
        return self.out_proj(c * mixed)[None]
