"""Adapters in a whole model: put in, listed, switched off, merged and taken out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from lora.layers import LoRALinear


def apply_lora(
    model: nn.Module,
    target_modules: str | Sequence[str] = "all-linear",
    *,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> int:
    """Freeze the model and replace its targeted linear layers by `LoRALinear`.

    Paper: LoRA, arXiv 2106.09685.

    Args:
        model: changed in place.
        target_modules: "all-linear" for every `nn.Linear` but the output head, or module
            names. A name matches at its end and at dots: "q_proj" and "self_attn.q_proj"
            both match "model.layers.3.self_attn.q_proj".
        r: the rank of the correction.
        alpha: the correction is multiplied by `alpha / r`.
        dropout: the probability with which an input of A is dropped in training.
        generator: the source of the random numbers in A; torch's global one by default.

    Returns:
        The number of layers replaced.

    Raises:
        ValueError: a target matches no `nn.Linear`, or the model has LoRA layers already.
    """
    if lora_modules(model):
        raise ValueError("apply_lora: the model has LoRA layers already")
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
    replace_linears(model, chosen, r=r, alpha=alpha, dropout=dropout, generator=generator)
    return len(chosen)


def linear_modules(model: nn.Module) -> dict[str, nn.Linear]:
    """Every plain `nn.Linear` below the model by its full name."""
    # Not its subclasses: they are quantised, or read past their forward (as attention's
    # fused output projection is), and the correction would be left out in silence.
    return {name: m for name, m in model.named_modules() if name and type(m) is nn.Linear}


def all_but_head(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Those `linears` that are not what `model.get_output_embeddings()` returns."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    return {name: module for name, module in linears.items() if module is not head}


def matches(name: str, target: str) -> bool:
    """True if the dotted `name` is `target` or ends with it at a dot."""
    return name == target or name.endswith(f".{target}")


def replace_linears(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    *,
    r: int,
    alpha: float,
    dropout: float,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze the model and put a `LoRALinear` in the place of each of `linears`."""
    layers = {
        name: LoRALinear(linear, r, alpha, dropout, generator=generator)
        for name, linear in linears.items()
    }
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def lora_modules(model: nn.Module) -> dict[str, LoRALinear]:
    """Every `LoRALinear` of the model by its full name, in the model's order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def require_lora(model: nn.Module) -> dict[str, LoRALinear]:
    """Return `lora_modules(model)`, which may not be empty.

    Raises:
        ValueError: the model has no LoRA layers.
    """
    modules = lora_modules(model)
    if not modules:
        raise ValueError("the model has no LoRA layers: call apply_lora first")
    return modules


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List A and B of every LoRA layer: what an optimizer is given."""
    return [p for m in lora_modules(model).values() for p in (m.lora_A, m.lora_B)]


@contextmanager
def disabled_adapters(model: nn.Module) -> Iterator[None]:
    """Within this context the model is its own base: the reference policy.

    Contexts may be nested; each restores the switches as it found them, after an exception
    too. The switches are the model's, so all threads see them. A merged layer computes with
    its unmerged weight here.

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


def merge(model: nn.Module) -> None:
    """Put every correction into its weight: `W <- W + (alpha / r) * B A`.

    Raises:
        RuntimeError: a layer is merged already; nothing was changed.
        ValueError: the model has no LoRA layers.
    """
    modules = require_lora(model)
    require_unmerged(modules)
    for module in modules.values():
        module.merge()


def unmerge(model: nn.Module) -> None:
    """Put every weight back as it was before `merge`, bit by bit.

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
        RuntimeError: one is.
    """
    for name, module in modules.items():
        if module.merged:
            raise RuntimeError(f"{name} is merged: call unmerge first")
