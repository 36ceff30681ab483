"""Adapters as tensors: by themselves under PEFT's names, or merged into the model's weights.

A module's tensors are `base_model.model.<module>.lora_A.weight` and `...lora_B.weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lora.inject import require_lora, require_unmerged
from lora.layers import LoRALinear
from lora.quantized import LoRAQuantizedLinear, QuantizedLinear


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Copy every A and B, float32 and detached, under PEFT's names.

    Returns:
        `base_model.model.<module>.lora_A.weight`: [r, in] and `...lora_B.weight`: [out, r].

    Raises:
        ValueError: the model has no LoRA layers.
    """
    return {
        key: parameter.detach().to(torch.float32, copy=True)
        for name, module in require_lora(model).items()
        for key, parameter in zip(_keys(name), (module.lora_A, module.lora_B), strict=True)
    }


def merged_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the model with the adapter merged in, as without LoRA layers.

    One merged weight is computed at a time, and the model is not changed. Quantised weights are
    dequantised.

    Yields:
        Names and tensors as in the model's `state_dict` before `apply_lora`, in the same dtypes.

    Raises:
        ValueError: the model has no LoRA layers, or a weight with an adapter is tied to one that
            has none or another, so that they would differ in a model that ties them.
    """
    require_lora(model)
    layers = dict(model.named_modules(remove_duplicate=False))
    modules = {name: m for name, m in layers.items() if isinstance(m, LoRALinear)}
    weights = {f"{name}.weight": module for name, module in modules.items()}
    own = {f"{name}.{part}" for name in modules for part in ("lora_A", "lora_B")}
    quantized = {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, LoRAQuantizedLinear | QuantizedLinear)
    }
    for name, layer in quantized.items():
        own |= {f"{name}.quantized.{part}" for part in layer.quantized.state_dict()}
    state = {name: t for name, t in model.state_dict().items() if name not in own}
    _require_untied(state, weights)
    for name, tensor in state.items():
        yield name, weights[name].merged_weight() if name in weights else tensor
    for name, layer in quantized.items():
        merged = layer.merged_weight() if isinstance(layer, LoRAQuantizedLinear) else layer.weight
        yield f"{name}.weight", merged


def _require_untied(state: Mapping[str, Tensor], weights: Mapping[str, LoRALinear]) -> None:
    owners: dict[int, tuple[str, LoRALinear | None]] = {}
    for name, tensor in state.items():
        layer = weights.get(name)
        base = tensor if layer is None else layer.base_weight
        first, owner = owners.setdefault(base.data_ptr(), (name, layer))
        if base.numel() and owner is not layer:
            raise ValueError(
                f"the adapter cannot be merged: {first} and {name} are one tied weight, and "
                "would differ"
            )


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the result of `adapter_state` into a model's LoRA layers.

    Args:
        model: a model with LoRA layers of the same names and shapes.
        state: tensors under PEFT's names.

    Raises:
        RuntimeError: a layer is merged, so its weight contains the old adapter.
        ValueError: a tensor is missing, unexpected or of another shape, or the model has no
            LoRA layers; nothing was loaded.
    """
    modules = require_lora(model)
    require_unmerged(modules)
    check_state(state, {name: (m.r, m) for name, m in modules.items()})
    copy_state(modules, state)


def _keys(name: str) -> tuple[str, str]:
    return f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"


def copy_state(modules: Mapping[str, LoRALinear], state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the layers, after `check_state`."""
    with torch.no_grad():
        for name, module in modules.items():
            key_a, key_b = _keys(name)
            module.lora_A.copy_(state[key_a])
            module.lora_B.copy_(state[key_b])


def check_state(
    state: Mapping[str, Tensor], layers: Mapping[str, tuple[int, nn.Linear | LoRALinear]]
) -> None:
    """Check the tensors' names and shapes against `layers`, name -> (r, layer).

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape.
    """
    expected: dict[str, tuple[int, int]] = {}
    for name, (r, layer) in layers.items():
        key_a, key_b = _keys(name)
        expected |= {key_a: (r, layer.in_features), key_b: (layer.out_features, r)}
    faults = [f"{key} is missing" for key in expected if key not in state]
    faults += [f"{key} is unexpected" for key in state if key not in expected]
    faults += [
        f"{key} must be {list(shape)}, got {list(state[key].shape)}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if faults:
        more = f"; and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError("the adapter does not fit the model: " + "; ".join(faults[:4]) + more)
