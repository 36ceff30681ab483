"""A policy of which a LoRA adapter is trained. The only file of `grpo` that knows `lora`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo.model.forward import ForwardMode
from grpo.model.policy import Policy
from lora import (
    adapter_state,
    apply_lora,
    disabled_adapters,
    load_adapter,
    merged_state,
    save_adapter,
)


class LoRAPolicy(Policy):
    """A language model whose LoRA adapter is trained and whose base stays frozen.

    Attributes:
        lora_modules: number of linear layers that carry an adapter.
    """

    weights_dirname = "adapter"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        lora_r: int = 8,
        lora_alpha: float = 16,
        lora_target_modules: str | Sequence[str] = "all-linear",
        adapter: str | Path | None = None,
        forward: ForwardMode | Literal["auto"] = "auto",
        activation_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        """Add an adapter to a model.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            lora_r: rank of the adapter.
            lora_alpha: the adapter's output is scaled by alpha / r.
            lora_target_modules: "all-linear" (all but the output head) or module names.
            adapter: folder of an adapter in PEFT's format to start from; its rank, alpha and
                modules replace the three above.
            forward: see `Policy`.
            activation_checkpointing: see `Policy`.
            seed: random seed of A's initial values.

        Raises:
            ValueError: the model does not fit the adapter, or not the forward pass.
        """
        if adapter is not None:
            self.lora_modules = load_adapter(model, adapter)
        else:
            self.lora_modules = apply_lora(
                model,
                lora_target_modules,
                r=lora_r,
                alpha=lora_alpha,
                generator=torch.Generator().manual_seed(seed),
            )
        super().__init__(
            model, tokenizer, forward=forward, activation_checkpointing=activation_checkpointing
        )

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapter's parameters, float32."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def copy_masters_to_model(self) -> None:
        """Do nothing: the model computes with the parameters themselves."""

    def reference(self) -> AbstractContextManager[None]:
        """Within this context the adapter is switched off."""
        return disabled_adapters(self.model)

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors, float32, under PEFT's names."""
        return adapter_state(self.model)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors under their own names, with the adapter merged in."""
        return merged_state(self.model)

    def save(self, folder: str | Path) -> None:
        """Write the adapter in the format of PEFT and vLLM."""
        save_adapter(self.model, folder, base_model_name_or_path=self.name)

    def load(self, folder: str | Path) -> None:
        """Read an adapter of the same shape, as `save` or PEFT wrote it.

        Raises:
            ValueError: the files do not fit this policy.
        """
        load_adapter(self.model, folder)
