"""Rows without padding: one after the other in a single sequence, for models without a token tree.

All layers but attention treat a token alone, so only attention has to know where a row ends. On a
CPU the model's own attention function is called row by row, with as much of the longest row's mask
as the row is long: windows, caps and sinks are the model's. On a GPU, where a launch costs more
than some masked products, queries, keys and values are padded for a single call. Nothing sees the
padding, which comes after a row, so a causal layer needs no mask: the flash kernel computes it.

It is not right where a convolution or a recurrence reads tokens across the end of a row, or where
the model's code masks by itself: the check at load time (`grpo.model.check`) decides.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grpo.transfer import to_device
from grpo.types import TokenBatch

NAMES = {"sdpa": "packed_sdpa", "eager": "packed_eager"}
"""Attention implementations of `transformers`, and what they are called for packed rows."""

ROW_BY_ROW = ("cpu",)
"""Kinds of devices that compute attention row by row."""


class PackedRows(NamedTuple):
    """Where the rows are in the sequence of L tokens.

    Attributes:
        lengths: of the N rows.
        longest: W, the greatest of them.
        places: [L] long; each token's place in the N * W of padded rows.
    """

    lengths: list[int]
    longest: int
    places: Tensor


def may_pack(model: Any) -> bool:
    """Tell whether a model's layers are of kinds that can be packed, if the check finds so.

    The rows of the check may be too short to show what others do, such as compressing tokens.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    interface = bool(getattr(model, "_supports_attention_backend", False))
    return interface and kinds <= {"full_attention", "sliding_attention"}


def prepare_packed(attention: str) -> str:
    """Register an attention implementation's variant for packed rows, and return its name.

    Calls of the variant without packed rows, as in decoding, are those of the implementation.

    Args:
        attention: one of `NAMES`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    name = NAMES[attention]
    AttentionInterface.register(name, partial(packed_attention, attention))
    AttentionMaskInterface.register(name, partial(_mask_of_longest, attention))
    return name


def packed_hidden(decoder: nn.Module, batch: TokenBatch) -> Tensor:
    """Compute the last hidden states of all tokens of a batch, one row after the other.

    Args:
        decoder: the model without its output head, with an implementation of `prepare_packed`.
        batch: N rows, on the CPU.

    Returns:
        [L, D], L the number of tokens.
    """
    lengths = batch.token_mask.sum(1).tolist()
    longest = max(lengths)
    mask = batch.token_mask[:, :longest]
    places = mask.flatten().nonzero()[:, 0]
    parts = batch.input_ids[batch.token_mask], places % longest, places, mask
    tokens, positions, places, mask = to_device(parts, next(decoder.parameters()).device)
    output = decoder(
        input_ids=tokens[None],
        attention_mask=mask,  # [N, W]: its shape tells `_mask_of_longest` the longest row's
        position_ids=positions[None],
        use_cache=False,
        packed_rows=PackedRows(lengths, longest, places),
    )
    hidden: Tensor = output.last_hidden_state
    return hidden[0]


def _mask_of_longest(
    attention: str,
    batch_size: int,
    q_length: int,
    kv_length: int,
    *,
    attention_mask: Tensor | None = None,
    **options: Any,
) -> Tensor | None:
    """Make the mask of a single row that is as long as the longest; None for a causal one."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    make: Any = ALL_MASK_ATTENTION_FUNCTIONS[attention]
    if attention_mask is not None and len(attention_mask) != batch_size:  # N rows in one sequence
        batch_size, q_length, attention_mask = 1, kv_length, None
    mask: Tensor | None = make(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        **options,
    )
    return mask


def packed_attention(
    attention: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows | None = None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Compute a layer's attention so that each row sees itself alone.

    Args:
        attention: the implementation that computes it.
        module: the attention layer.
        query: [1, H, L, D].
        key: [1, H_kv, L, D].
        value: [1, H_kv, L, D].
        attention_mask: [1, 1, W, W] of the longest row; None for a causal one.
        packed_rows: None for a call of the implementation as it is.
        options: the implementation's.

    Returns:
        [1, L, H, D], and attention weights only without packed rows.
    """
    if attention == "eager":  # each model file has its own, with its caps and sinks
        function = sys.modules[type(module).__module__].eager_attention_forward
    else:
        from transformers import AttentionInterface

        function = AttentionInterface()[attention]
    if packed_rows is None:
        result: tuple[Tensor, Any] = function(module, query, key, value, attention_mask, **options)
        return result
    lengths, longest, places = packed_rows
    if query.device.type in ROW_BY_ROW:
        outputs = []
        parts = (x.split(lengths, 2) for x in (query, key, value))
        for n, *row in zip(lengths, *parts, strict=True):
            mask = None if attention_mask is None else attention_mask[..., :n, :n]
            outputs.append(function(module, *row, mask, **options)[0])
        return torch.cat(outputs, 1), None

    def pad(x: Tensor) -> Tensor:
        x = x[0].transpose(0, 1)
        padded = x.new_zeros(len(lengths) * longest, *x.shape[1:]).index_copy(0, places, x)
        return padded.view(len(lengths), longest, *x.shape[1:]).transpose(1, 2)

    output, _ = function(module, *map(pad, (query, key, value)), attention_mask, **options)
    return output.flatten(0, 1)[places][None], None
