"""Decoding without the token tree: one prompt is computed once and continued in several rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grpo.transfer import to_device


class PromptDecoder:
    """Computes the next hidden state of several continuations of one prompt.

    The model's own cache is used where it is right (see `grpo.model.check`); otherwise every token
    is computed again at each step.

    Attributes:
        tokens_computed: tokens that went through the model in the last call.
    """

    def __init__(
        self, decoder: Any, prompt: Sequence[int], device: torch.device, *, use_cache: bool
    ) -> None:
        """Take a prompt; nothing is computed yet.

        Args:
            decoder: the model without its output head.
            prompt: at least one token.
            device: the model's device.
            use_cache: False to compute every token again at each step.
        """
        self._decoder, self._device, self._use_cache = decoder, device, use_cache
        # Some models count positions by a cache that not all their layers fill.
        self._has_positions = "position_ids" in inspect.signature(decoder.forward).parameters
        (self._rows,) = to_device([torch.tensor([prompt])], device)
        self._cache: Any = None
        self.tokens_computed = 0

    def start(self) -> Tensor:
        """Compute the prompt; return its last hidden state, [1, D]."""
        return self._compute(self._rows, 0)

    def extend(self, kept: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Continue some of the rows by one token each.

        Args:
            kept: R numbers of rows; the new row i continues row kept[i].
            tokens: R token ids.

        Returns:
            [R, D], the hidden states of the new tokens.
        """
        index, new = to_device((torch.tensor(kept), torch.tensor(tokens)[:, None]), self._device)
        length = self._rows.shape[1]
        self._rows = torch.cat([self._rows[index], new], 1)
        if self._cache is None:
            return self._compute(self._rows, 0)
        self._cache.reorder_cache(index)
        return self._compute(new, length)

    def _compute(self, ids: Tensor, start: int) -> Tensor:
        options: dict[str, Any] = {}
        if self._has_positions:
            positions = torch.arange(start, start + ids.shape[1], device=self._device)
            options["position_ids"] = positions.expand(ids.shape)
        if self._use_cache:
            options["past_key_values"] = self._cache
        output = self._decoder(input_ids=ids, use_cache=self._use_cache, **options)
        if self._use_cache:
            self._cache = output.past_key_values
        self.tokens_computed = ids.numel()
        hidden: Tensor = output.last_hidden_state
        return hidden[:, -1]
