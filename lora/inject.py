"""Add LoRA layers to a model; list, disable, merge and unmerge them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora.compatibility import unsuitable, write_reasons
from lora.layers import LoRALinear
from lora.packed import PackedWeight
from lora.quantized import LoRAQuantizedLinear, QuantizedLinear
from lora.targets import matches


def apply_lora(
    model: nn.Module,
    target_modules: str | Sequence[str] = "all-linear",
    *,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    probe: Callable[[], Tensor] | None = None,
) -> int:
    """Freeze the model and replace its targeted linear layers with `LoRALinear`.

    Layers that PEFT would read otherwise, or whose weight the model reads without calling them,
    cannot have LoRA (`lora.compatibility`): "all-linear" leaves them out with a warning.

    Paper: LoRA, arXiv 2106.09685.

    Args:
        model: changed in place.
        target_modules: "all-linear" for every `nn.Linear` but the output head, or names of
            modules. A name matches whole components at the end of a module's path: "q_proj" and
            "self_attn.q_proj" both match "model.layers.3.self_attn.q_proj".
        r: rank of the correction.
        alpha: the correction is multiplied by `alpha / r`.
        dropout: probability with which an input of A is dropped in training.
        generator: random number generator for A; None for torch's global one.
        probe: runs one forward pass of the model on a few tokens and returns its logits, to find
            the weights that are read without a call; None to skip that check.

    Returns:
        The number of layers replaced.

    Raises:
        ValueError: a target matches no `nn.Linear` or one that cannot have LoRA, or the model
            already has LoRA layers. The model is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(target_modules, Sequence):
        raise TypeError(
            f"target_modules must be 'all-linear' or a list of names, got {target_modules!r:.80}"
        )
    if lora_modules(model):
        raise ValueError("apply_lora: the model already has LoRA layers")
    linears = linear_modules(model)
    if isinstance(target_modules, str):
        if target_modules != "all-linear":
            raise ValueError(
                f"target_modules must be 'all-linear' or a list of names, got {target_modules!r}"
            )
        chosen = all_but_head(model, linears)
        unmatched = [] if chosen else ["all-linear"]
    else:
        chosen = {n: m for n, m in linears.items() if any(matches(n, t) for t in target_modules)}
        unmatched = [t for t in target_modules if not any(matches(n, t) for n in chosen)]
        if not target_modules:
            raise ValueError("target_modules must name at least one module, got none")
    if unmatched:
        exist = ", ".join(sorted({name.rpartition(".")[2] for name in linears})) or "none"
        raise ValueError(f"target_modules {unmatched} match no nn.Linear; there are: {exist}")
    reasons = unsuitable(chosen, model_type(model), probe)
    if reasons and (target_modules != "all-linear" or len(reasons) == len(chosen)):
        raise ValueError(f"target_modules cannot have LoRA: {write_reasons(reasons)}")
    if reasons:
        warnings.warn(f"layers without LoRA: {write_reasons(reasons)}", stacklevel=2)
    chosen = {name: linear for name, linear in chosen.items() if name not in reasons}
    replace_linears(model, chosen, r=r, alpha=alpha, dropout=dropout, generator=generator)
    return len(chosen)


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """List every `nn.Linear` and `QuantizedLinear` inside the model by its full name."""
    # Other subclasses are quantised otherwise, or others read their weight without calling them (as
    # attention's fused output projection): the correction would silently have no effect.
    kinds = (nn.Linear, QuantizedLinear)
    return {name: m for name, m in model.named_modules() if name and type(m) in kinds}


def all_but_head(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Leave out the layer that `model.get_output_embeddings()` returns, if there is one."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return {name: module for name, module in linears.items() if module is not head}


def model_type(model: nn.Module) -> str:
    """Return `model.config.model_type`; "" for a model that has none."""
    return getattr(getattr(model, "config", None), "model_type", None) or ""


def replace_linears(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    *,
    r: int,
    alpha: float,
    dropout: float,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze the model and replace each of `linears` with a `LoRALinear`."""
    layers = {}
    for name, linear in linears.items():
        kind = LoRAQuantizedLinear if isinstance(linear, QuantizedLinear) else LoRALinear
        layers[name] = kind(linear, r, alpha, dropout, generator=generator)
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def lora_modules(model: nn.Module) -> dict[str, LoRALinear]:
    """List every `LoRALinear` of the model by its full name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def require_lora(model: nn.Module) -> dict[str, LoRALinear]:
    """Return `lora_modules(model)` and require that it is not empty.

    Raises:
        ValueError: the model has no LoRA layers.
    """
    modules = lora_modules(model)
    if not modules:
        raise ValueError("the model has no LoRA layers: call apply_lora first")
    return modules


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List A and B of every LoRA layer, for an optimizer."""
    return [p for m in lora_modules(model).values() for p in (m.lora_A, m.lora_B)]


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """Within this context the model computes without its adapter, as the reference policy.

    Contexts may be nested; each restores `enabled` of every layer at its end, after an exception
    too. All threads that use the model are affected. A merged layer uses its unmerged weight.

    Raises:
        ValueError: the model has no LoRA layers.
    """
    modules = require_lora(model).values()
    before = [module.enabled for module in modules]
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module, enabled in zip(modules, before, strict=True):
            module.enabled = enabled


def pack_weights(model: nn.Module) -> None:
    """Let LoRA layers hold a second copy of their weight, for products without gradients.

    It is made at a layer's first such product, of weights that can be packed; see `lora.packed`.
    In float32 it contains the correction, and is made again when that has changed.
    """
    for module in lora_modules(model).values():
        if type(module) is LoRALinear:  # a quantised base has no matrix to copy
            module.packed = PackedWeight()


def merge(model: nn.Module) -> None:
    """Add every correction to its weight: `W <- W + (alpha / r) * B A`.

    Raises:
        RuntimeError: a layer is already merged; nothing was changed.
        ValueError: the model has no LoRA layers.
    """
    modules = require_lora(model)
    require_unmerged(modules)
    for module in modules.values():
        module.merge()


def unmerge(model: nn.Module) -> None:
    """Restore every weight as it was before `merge`, bit by bit.

    Raises:
        RuntimeError: a layer is not merged; nothing was changed.
        ValueError: the model has no LoRA layers.
    """
    modules = require_lora(model)
    for name, module in modules.items():
        if not module.merged:
            raise RuntimeError(f"unmerge: {name} is not merged")
    for module in modules.values():
        module.unmerge()


def require_unmerged(modules: Mapping[str, LoRALinear]) -> None:
    """Check that no layer is merged.

    Raises:
        RuntimeError: one is merged.
    """
    for name, module in modules.items():
        if module.merged:
            raise RuntimeError(f"{name} is merged: call unmerge first")
