"""Save and load adapters in PEFT's file format.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, which PEFT and vLLM read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lora.adapter_config import CONFIG_NAME, AdapterConfig, read_config, require_file, shortened
from lora.compatibility import unsuitable, write_reasons
from lora.inject import (
    all_but_head,
    linear_modules,
    lora_modules,
    model_type,
    replace_linears,
    require_lora,
    require_unmerged,
)
from lora.layers import LoRALinear
from lora.state import adapter_state, check_state, copy_state

WEIGHTS_NAME = "adapter_model.safetensors"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_adapter(model: nn.Module, folder: str | Path, *, base_model_name_or_path: str) -> None:
    """Write the model's adapter as a folder that PEFT and vLLM load.

    Each file is written under a temporary name and then renamed, so no reader sees half of it.

    Args:
        model: a model with LoRA layers, merged or not.
        folder: created if it does not exist; an adapter in it is replaced.
        base_model_name_or_path: hub id or folder of the base model, recorded for readers.

    Raises:
        ValueError: the model has no LoRA layers, or they differ in r, alpha or dropout.
    """
    import safetensors.torch

    modules = require_lora(model)
    settings = {(m.r, m.alpha, m.dropout) for m in modules.values()}
    if len(settings) > 1:
        raise ValueError(f"LoRA layers must share (r, alpha, dropout), got {sorted(settings)}")
    [(r, alpha, dropout)] = settings
    config = {
        "base_model_name_or_path": base_model_name_or_path,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": r,
        "target_modules": _shortest_targets(model, modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = safetensors.torch.save(adapter_state(model), metadata={"format": "pt"})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS_NAME, tensors)
    _write(folder / CONFIG_NAME, (json.dumps(config, indent=2) + "\n").encode())


def load_adapter(
    model: nn.Module,
    folder: str | Path,
    *,
    trainable: bool = True,
    probe: Callable[[], Tensor] | None = None,
) -> int:
    """Load an adapter that `save_adapter` or PEFT wrote.

    A model without LoRA layers gets those that the configuration asks for. rsLoRA's scaling
    `lora_alpha / sqrt(r)` (arXiv 2312.03732) becomes an alpha of `lora_alpha * sqrt(r)`.

    Args:
        model: a model without LoRA layers, or with layers of the same names, r and alpha.
        folder: the folder with the two files.
        trainable: True for A and B to receive gradients. Newly added layers freeze the rest of
            the model either way.
        probe: see `apply_lora`.

    Returns:
        The number of LoRA layers loaded.

    Raises:
        FileNotFoundError: one of the files does not exist.
        RuntimeError: a layer of the model is merged.
        ValueError: a file is not valid, asks for a feature that is not supported, or does not fit
            the model, or a layer is one that `apply_lora` refuses. The model is unchanged.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG_NAME)
    state = _read_tensors(folder / WEIGHTS_NAME)
    r, alpha = config.r, config.alpha

    modules = lora_modules(model)
    require_unmerged(modules)
    for name, module in modules.items():
        if module.r != r or not math.isclose(module.alpha, alpha):
            raise ValueError(
                f"{name} has r={module.r} and alpha={module.alpha}, "
                f"the adapter in {folder} has r={r} and alpha={alpha}"
            )
    targeted = {} if modules else _targeted(model, config)
    state = _without_base(state, modules or targeted)
    check_state(state, {name: (r, m) for name, m in (modules or targeted).items()})
    _require_finite(folder, state)
    if not modules:
        reasons = unsuitable(targeted, model_type(model), probe)
        if reasons:
            raise ValueError(f"the adapter in {folder} cannot be used: {write_reasons(reasons)}")
        replace_linears(model, targeted, r=r, alpha=alpha, dropout=config.dropout)
        modules = lora_modules(model)
    copy_state(modules, state)
    for module in modules.values():
        module.lora_A.requires_grad_(trainable)
        module.lora_B.requires_grad_(trainable)
    return len(modules)


def _shortest_targets(model: nn.Module, modules: Mapping[str, LoRALinear]) -> list[str]:
    """Find the shortest name endings that match exactly these modules, sorted."""

    def endings(name: str) -> list[str]:
        parts = name.split(".")
        return [".".join(parts[i:]) for i in reversed(range(len(parts)))]

    others = {e for name, _ in model.named_modules() if name not in modules for e in endings(name)}
    targets = set()
    for name in modules:
        target = next((e for e in endings(name) if e not in others), None)
        if target is None:
            raise ValueError(f"no list of names matches {name} and no module without LoRA")
        targets.add(target)
    return sorted(targets)


def _targeted(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Linear]:
    """Find the layers that the configuration targets, all of which must be `nn.Linear`."""
    linears = linear_modules(model)
    names = [name for name, _ in model.named_modules() if name]
    chosen = config.targets(names, list(all_but_head(model, linears)))
    target_modules = f"target_modules {shortened(config.target_modules)}"
    if not chosen:
        raise ValueError(f"{config.path}: {target_modules} match no nn.Linear")
    for name in chosen:
        if name not in linears:
            kind = type(model.get_submodule(name)).__name__
            raise ValueError(
                f"{config.path}: {target_modules} must match nn.Linear only, got {name}: {kind}"
            )
    return {name: linears[name] for name in chosen}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    require_file(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a safetensors file: {reason}") from error


def _require_finite(folder: Path, state: Mapping[str, Tensor]) -> None:
    for key, tensor in state.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{folder}: {key} must hold floats, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"{folder}: {key} must be finite, got NaN or infinity")


def _without_base(
    state: dict[str, Tensor], layers: Mapping[str, nn.Linear | LoRALinear]
) -> dict[str, Tensor]:
    """Leave out what PEFT adds for the output head: a copy of its own weight and bias.

    Raises:
        ValueError: they are not the model's own.
    """
    kept = dict(state)
    for name, layer in layers.items():
        weight = layer.base_weight if isinstance(layer, LoRALinear) else layer.weight
        for part, own in (("weight", weight), ("bias", layer.bias)):
            copy = kept.pop(f"base_model.model.{name}.base_layer.{part}", None)
            if copy is not None and not _same(copy, own):
                raise ValueError(
                    f"the adapter does not fit the model: it was trained on another {name}.{part}"
                )
    return kept


def _same(copy: Tensor, own: Tensor | None) -> bool:
    """Compare two tensors in the narrower of their dtypes."""
    if own is None or copy.shape != own.shape:
        return False
    dtype = min(copy.dtype, own.dtype, key=lambda d: d.itemsize)
    return torch.equal(copy.to(own.device, dtype), own.detach().to(dtype))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
