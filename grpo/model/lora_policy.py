"""A policy of which a LoRA adapter is trained. The only file of `grpo` that knows `lora`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grpo.errors import ConfigError
from grpo.model.check import AdapterCheck, check_model, check_weights_stay
from grpo.model.forward import ForwardMode
from grpo.model.graphs import TreeGraphs
from grpo.model.policy import Policy
from grpo.model.probe import foreign_code
from lora import (
    PackedWeight,
    adapter_state,
    apply_lora,
    disabled_adapters,
    load_adapter,
    lora_modules,
    merge,
    merged_state,
    pack_weights,
    quantize_linears,
    save_adapter,
    unmerge,
    unreached,
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
        cuda_graphs: bool = True,
        seed: int = 0,
    ) -> None:
        """Add an adapter to a model.

        Args:
            model: a `transformers` causal language model.
            tokenizer: its tokenizer.
            lora_r: rank of the adapter.
            lora_alpha: the adapter's output is scaled by alpha / r.
            lora_target_modules: "all-linear" (all but the output head, and but the layers that
                cannot have LoRA, which a warning names) or module names.
            adapter: folder of an adapter in PEFT's format to start from; its rank, alpha and
                modules replace the three above.
            forward: how log-probabilities are computed; "auto" is the tree where the model
                supports it, and warns where it does not.
            activation_checkpointing: see `Policy`.
            cuda_graphs: on a GPU, compute trees by CUDA graphs (`grpo.model.graphs`); not with
                recomputed activations.
            seed: random seed of A's initial values.

        Raises:
            ValueError: the model does not fit the adapter, or not the forward pass.
        """
        check_weights_stay(model)
        names, share = unreached(model)
        if names:
            warnings.warn(
                f"no LoRA on {', '.join(names)}: {share:.0%} of the parameters are not in linear "
                "layers",
                stacklevel=2,
            )
        if adapter is not None:
            self.lora_modules = load_adapter(model, adapter, probe=_probe(model))
        else:
            self.lora_modules = apply_lora(
                model,
                lora_target_modules,
                r=lora_r,
                alpha=lora_alpha,
                generator=torch.Generator().manual_seed(seed),
                probe=_probe(model),
            )
        plan = check_model(
            model,
            forward,
            adapter=AdapterCheck(_perturb, _merged),
            activation_checkpointing=activation_checkpointing,
        )
        super().__init__(model, tokenizer, plan, activation_checkpointing=activation_checkpointing)
        if self.device.type == "cpu" and _memory() > 4 * self._packed_bytes():
            pack_weights(model)
            if type(self.head.layer) is nn.Linear:
                self.head = replace(self.head, product=PackedWeight().product)
        on_cuda = self.device.type == "cuda" and self.forward_mode == "tree"
        if cuda_graphs and on_cuda and not activation_checkpointing:
            self.graphs = TreeGraphs(self.decoder, self.conv_width)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the adapter's parameters, float32."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def _packed_bytes(self) -> int:
        """Return the size of the second copies of layers and head; see `pack_weights`."""
        layers = lora_modules(self.model).values()
        numbers = sum(layer.in_features * layer.out_features for layer in layers)
        size: int = (numbers + self.head.layer.weight.numel()) * self.model.dtype.itemsize
        return size

    def copy_masters_to_model(self) -> None:
        """Do nothing: the model computes with the parameters themselves."""

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context the adapter is switched off."""
        with disabled_adapters(self.model):
            if self.graphs:
                self.graphs.variant = "reference"
            try:
                yield
            finally:
                if self.graphs:
                    self.graphs.variant = ""

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's tensors, float32, under PEFT's names."""
        return adapter_state(self.model)

    def layers(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Map the names of layers to A [r, in], B [out, r], and alpha: scaling times r."""
        return {
            name: (layer.lora_A.detach(), layer.lora_B.detach(), layer.scaling * layer.r)
            for name, layer in lora_modules(self.model).items()
        }

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors under their own names, with the adapter merged in.

        Raises:
            ConfigError: a weight with an adapter is tied to another, such as the embedding's.
        """
        try:
            yield from merged_state(self.model)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def save(self, folder: str | Path) -> None:
        """Write the adapter in the format of PEFT and vLLM."""
        save_adapter(self.model, folder, base_model_name_or_path=self.name)

    def load(self, folder: str | Path) -> None:
        """Read an adapter of the same shape, as `save` or PEFT wrote it.

        Raises:
            ValueError: the files do not fit this policy.
        """
        load_adapter(self.model, folder)


def quantize_base(model: Any, quantize: Literal["8bit", "4bit"], device: str | None = None) -> None:
    """Freeze a model that was just read and hold its linear layers' weights in 8 or 4 bits.

    A `LoRAPolicy` of it trains the adapter on the quantised base, in update, generator and
    reference alike.

    Args:
        model: on the CPU; changed in place.
        quantize: how many bits.
        device: where the linear layers go, one by one; None to leave them where they are.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: the model's layers cannot be quantised.
    """
    check_weights_stay(model)
    bits: Literal[8, 4] = 8 if quantize == "8bit" else 4
    quantize_linears(model, bits, device=device, probe=_probe(model))


def _memory() -> int:
    """Return the bytes of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _probe(model: Any) -> Callable[[], Tensor]:
    """Return a function that computes the model's logits for a few tokens."""
    ids = torch.arange(8, device=model.device) % model.config.get_text_config().vocab_size

    def run() -> Tensor:
        with foreign_code(model):
            logits: Tensor = model(input_ids=ids[None], use_cache=False).logits
        return logits

    return run


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    """Give the adapter a correction of about a tenth of each layer's output."""
    random = torch.Generator().manual_seed(0)
    for module in lora_modules(model).values():
        std = 0.1 * float(module.weight.float().std()) * module.in_features**0.5 / module.scaling
        noise = torch.randn(module.lora_B.shape, generator=random) * std
        module.lora_B.add_(noise.to(module.lora_B))


@contextmanager
def _merged(model: nn.Module) -> Iterator[None]:
    merge(model)
    try:
        yield
    finally:
        unmerge(model)
