"""LFM2's convolution over a token tree, apart because it imports the model's code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

if TYPE_CHECKING:
    from grpo.tree.layout import Layout


class TreeShortConv(Lfm2ShortConv):
    """LFM2's gated short convolution with its inputs gathered along the parents.

    `y = W_out (C * conv(B * x))` with `B, C, x = W_in h`, where tap k of the convolution
    reads the node's k-th ancestor, and 0 above the root.
    """

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | Layout | None = None,
    ) -> Tensor:
        """Map [1, L, D] to [1, L, D]."""
        if seq_idx is None or isinstance(seq_idx, Tensor):
            output: Tensor = super().forward(
                hidden_states, past_key_values, attention_mask, seq_idx
            )
            return output
        b, c, x = self.in_proj(hidden_states)[0].chunk(3, dim=-1)
        # The kernel's last weight is the node's own.
        weights = self.conv.weight[:, 0].flip(-1).unbind(-1)
        taps = zip(weights, seq_idx.taps(self, b * x), strict=False)
        mixed = sum(weight * inputs for weight, inputs in taps)
        if self.conv.bias is not None:
            mixed = mixed + self.conv.bias
        projected: Tensor = self.out_proj(c * mixed)
        return projected[None]
