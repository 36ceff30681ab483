"""Layers on which an adapter would not mean the same to everyone who reads it.

PEFT changes what it reads for some model types, and some models use a layer's weight without
calling the layer. Such layers get no LoRA: `unsuitable` names them, with the reason. `unreached`
names the weights that no adapter of linear layers reaches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora.layers import LoRALinear
from lora.quantized import QuantizedLinear, QuantizedWeight

# PEFT 0.21, `_convert_peft_config_moe` in peft/utils/transformers_weight_conversion.py: since
# transformers 5 the experts of these model types are stacked in two parameters, so PEFT takes every
# target that ends in one of the names for the experts (or the router), wherever the layer is.
_QWEN2_MOE = ("gate", "gate_proj", "up_proj", "down_proj")
_MIXTRAL = ("gate", "w1", "w2", "w3")
_EXPERT_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["minimax", "minimax_m2", "mixtral"], _MIXTRAL),
    **dict.fromkeys(
        [
            "afmoe",
            "cohere2_moe",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "ernie4_5_moe",
            "exaone_moe",
            "flex_olmo",
            "glm4_moe",
            "glm4_moe_lite",
            "glm4v_moe",
            "glm_moe_dsa",
            "hunyuan_v1_moe",
            "longcat_flash",
            "mellum",
            "olmoe",
            "qwen3_moe",
            "qwen3_next",
            "qwen3_omni_moe",
            "qwen3_omni_moe_thinker",
            "solar_open",
        ],
        _QWEN2_MOE,
    ),
}
# `_check_lora_target_modules_mamba` in peft/tuners/tuners_utils.py.
_REFUSED_NAMES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ["falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"], ("out_proj", "conv1d")
)
# PEFT renames an adapter's tensors as transformers renames those of old checkpoints
# (transformers/conversion_mapping.py). These patterns also match the new names, which then lose
# their module.
_RENAMED: dict[str, str] = {"laguna": r"mlp.shared_expert."}


def unsuitable(
    layers: Mapping[str, nn.Linear | LoRALinear],
    model_type: str,
    probe: Callable[[], Tensor] | None = None,
) -> dict[str, str]:
    """Name the layers that must not get LoRA, with the reason.

    Args:
        layers: the layers in question, by their full names.
        model_type: the model's `config.model_type`; "" for a model that has none.
        probe: see `read_past_forward`; None to skip that check.

    Returns:
        The full name and the reason of each; empty if there is none.
    """
    reasons = {}
    for name in layers:
        last = name.rpartition(".")[2]
        if last in _EXPERT_NAMES.get(model_type, ()):
            reasons[name] = f"PEFT takes the name for experts of {model_type}"
        elif last in _REFUSED_NAMES.get(model_type, ()):
            reasons[name] = f"PEFT refuses the name in {model_type}"
        elif model_type in _RENAMED and re.search(_RENAMED[model_type], f"{name}."):
            reasons[name] = f"PEFT renames the tensors in {model_type}"
    if probe is not None:
        rest = {  # quantised layers have passed this check before
            name: layer
            for name, layer in layers.items()
            if name not in reasons and not isinstance(layer, QuantizedLinear)
        }
        past = read_past_forward(rest, probe)
        reasons |= dict.fromkeys(past, "the model reads the weight without calling the layer")
    return reasons


def read_past_forward(
    layers: Mapping[str, nn.Linear | LoRALinear], probe: Callable[[], Tensor]
) -> list[str]:
    """Name the layers whose weight the model uses in another way than by calling the layer.

    A correction of such a layer would be computed in part or not at all, while merging it into the
    weight would change everything. While `probe` runs, every layer computes with a copy of its
    weight that takes no gradient: a gradient that still reaches the weight has come past the
    layer. A layer that is not called, such as an expert without tokens, is not named; nor is one
    whose weight is tied to another module's.

    Args:
        layers: layers of one model, by their full names.
        probe: runs one forward pass of a few tokens and returns its logits.
    """
    kept = {name: layer.weight for name, layer in layers.items()}
    weights = [nn.Parameter(weight.detach()) for weight in kept.values()]
    try:
        for layer, weight in zip(layers.values(), weights, strict=True):
            layer.weight = weight
            # Shadows the method of the class until it is deleted below.
            layer.forward = partial(F.linear, weight=weight.detach(), bias=layer.bias)  # type: ignore[method-assign]
        with torch.enable_grad():
            logits = probe()
    finally:
        for name, layer in layers.items():
            layer.weight = kept[name]
            layer.__dict__.pop("forward", None)
    if not weights or not logits.requires_grad:
        return []
    gradients = torch.autograd.grad(logits.float().sum(), weights, allow_unused=True)
    return [n for n, gradient in zip(layers, gradients, strict=True) if gradient is not None]


def unreached(model: nn.Module) -> tuple[list[str], float]:
    """Find the weights that no adapter reaches, because they are not held by linear layers.

    Mostly the experts of a mixture, which transformers 5 holds as parameters of three dimensions.

    Returns:
        The parameters of two or more dimensions outside linear, embedding and convolution layers,
        written as in `patterns`, if they are 1 % of all parameters or more; and their share.
    """
    layers = (nn.Linear, LoRALinear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    reached = {id(p) for m in model.modules() if isinstance(m, layers) for p in m.parameters()}
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in reached:
            [pattern] = patterns([name])
            sizes[pattern] = sizes.get(pattern, 0) + parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    total += sum(math.prod(m.shape) for m in model.modules() if isinstance(m, QuantizedWeight))
    large = {pattern: size for pattern, size in sizes.items() if size >= total / 100}
    return list(large), sum(large.values()) / max(total, 1)


def write_reasons(reasons: Mapping[str, str]) -> str:
    """Write the result of `unsuitable` in one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(patterns(names))} ({why})" for why, names in by_reason.items())


def patterns(names: Iterable[str]) -> list[str]:
    """Write names that differ only in the numbers of layers as one: "layers.*.mlp.gate"."""
    return list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))
