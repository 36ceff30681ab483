"""Quantise the linear layers of a model, one after the other."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora.compatibility import read_past_forward, unreached, write_reasons
from lora.inject import all_but_head, linear_modules
from lora.quantized import BLOCK, Bits, QuantizedLinear, import_bitsandbytes


def quantize_linears(
    model: nn.Module,
    bits: Bits,
    *,
    device: torch.device | str | None = None,
    probe: Callable[[], Tensor] | None = None,
) -> int:
    """Freeze a model and hold the weights of its linear layers in 8 or 4 bits.

    All but the output head, and but the layers that a warning names: whose weight the model reads
    without calling them, shares with another layer, or is of a shape that cannot be quantised.
    One layer is quantised at a time, and its plain weight is released before the next. Call it
    before `apply_lora`.

    Args:
        model: changed in place.
        bits: 8 or 4.
        device: where to quantise and keep the linear layers, one after the other; None for where
            they are. A GPU does it fast and then holds one plain weight at a time.
        probe: see `apply_lora`.

    Returns:
        The number of layers quantised.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: none of the layers can be quantised, or most of the model's weights are not in
            linear layers. The model is unchanged.
    """
    import_bitsandbytes()
    linears = all_but_head(model, linear_modules(model))
    held = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    )
    reasons = {}
    for name, layer in linears.items():
        if held[id(layer.weight)] > 1:
            reasons[name] = "its weight is another layer's as well"
        elif layer.weight.numel() % BLOCK:
            reasons[name] = f"its weight has no multiple of {BLOCK} numbers"
    if probe is not None:
        rest = {name: layer for name, layer in linears.items() if name not in reasons}
        past = read_past_forward(rest, probe)
        del rest  # it holds the plain weights
        reasons |= dict.fromkeys(past, "the model reads the weight without calling the layer")
    names, share = unreached(model)
    if share > 0.5:
        raise ValueError(
            f"its weights cannot be quantised: {share:.0%} of them are outside linear layers, in "
            f"{', '.join(names)}"
        )
    chosen = [name for name in linears if name not in reasons]
    if not chosen:
        why = write_reasons(reasons) or "it has no linear layer but the output head"
        raise ValueError(f"its weights cannot be quantised: {why}")
    if reasons:
        warnings.warn(f"layers that are not quantised: {write_reasons(reasons)}", stacklevel=2)
    model.requires_grad_(False)
    for name in chosen:
        model.set_submodule(name, QuantizedLinear(linears.pop(name).to(device), bits))
    return len(chosen)
