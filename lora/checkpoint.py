"""Save and load adapters in PEFT's file format.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, which PEFT and vLLM read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lora.inject import (
    all_but_head,
    linear_modules,
    lora_modules,
    matches,
    replace_linears,
    require_lora,
    require_unmerged,
)
from lora.layers import LoRALinear
from lora.state import adapter_state, check_state, copy_state

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

# The configuration keys that are read here, and those that do not affect how trained tensors are
# used. Every other key that is set asks for a feature that is not supported.
_READ = {
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "target_modules",
    "use_rslora",
}
_WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}


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


def load_adapter(model: nn.Module, folder: str | Path, *, trainable: bool = True) -> int:
    """Load an adapter that `save_adapter` or PEFT wrote.

    A model without LoRA layers gets those that the configuration asks for. rsLoRA's scaling
    `lora_alpha / sqrt(r)` (arXiv 2312.03732) becomes an alpha of `lora_alpha * sqrt(r)`.

    Args:
        model: a model without LoRA layers, or with layers of the same names, r and alpha.
        folder: the folder with the two files.
        trainable: True for A and B to receive gradients. Newly added layers freeze the rest of
            the model either way.

    Returns:
        The number of LoRA layers loaded.

    Raises:
        FileNotFoundError: one of the files does not exist.
        RuntimeError: a layer of the model is merged.
        ValueError: a file is not valid, asks for a feature that is not supported, or does not fit
            the model. The model is unchanged.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_NAME)
    state = _read_tensors(folder / WEIGHTS_NAME)
    r = config["r"]
    alpha = config["lora_alpha"] * (math.sqrt(r) if config.get("use_rslora") else 1)

    modules = lora_modules(model)
    require_unmerged(modules)
    for name, module in modules.items():
        if module.r != r or not math.isclose(module.alpha, alpha):
            raise ValueError(
                f"{name} has r={module.r} and alpha={module.alpha}, "
                f"the adapter in {folder} has r={r} and alpha={alpha}"
            )
    targeted = {} if modules else _targeted(model, config["target_modules"])
    if not modules and not targeted:
        raise ValueError(f"target_modules {config['target_modules']!r} match no nn.Linear")
    check_state(state, {name: (r, m) for name, m in (modules or targeted).items()})
    if not modules:
        dropout = config.get("lora_dropout", 0.0)
        replace_linears(model, targeted, r=r, alpha=alpha, dropout=dropout)
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


def _targeted(model: nn.Module, target_modules: list[str] | str) -> dict[str, nn.Linear]:
    """Find the layers that match PEFT's `target_modules`: names, a pattern or "all-linear"."""
    linears = linear_modules(model)
    if isinstance(target_modules, list):
        return {n: m for n, m in linears.items() if any(matches(n, t) for t in target_modules)}
    if target_modules.lower() == "all-linear":
        return all_but_head(model, linears)
    return {n: m for n, m in linears.items() if re.fullmatch(target_modules, n)}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got {type(config).__name__}")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', got {config.get('peft_type')!r}")
    r, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"{path}: r must be a positive integer, got {r!r}")
    if not isinstance(alpha, int | float):
        raise ValueError(f"{path}: lora_alpha must be a number, got {alpha!r}")
    if not isinstance(targets, list | str):
        raise ValueError(f"{path}: target_modules must be a list or a string, got {targets!r}")
    # Other initialisations change the base weight too, which the adapter does not contain.
    unsupported = {
        key: value
        for key, value in config.items()
        if key not in _READ | _WITHOUT_EFFECT
        and not (value is None or value is False or value in ({}, [], "none"))
    }
    if config.get("init_lora_weights", True) not in (True, False, "gaussian", "orthogonal"):
        unsupported["init_lora_weights"] = config["init_lora_weights"]
    if unsupported:
        raise ValueError(f"{path} asks for features that are not supported: {unsupported}")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
