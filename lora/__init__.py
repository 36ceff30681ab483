"""Low-rank adapters: add them to a model, disable, merge, and save them in PEFT's format.

>>> count = apply_lora(model, r=8, alpha=16)
>>> optimizer = torch.optim.AdamW(lora_parameters(model))
>>> with disabled_adapters(model):
...     reference = model(input_ids).logits
>>> save_adapter(model, "adapter", base_model_name_or_path="some/model")

`quantize_linears(model, 4)` before `apply_lora` holds the frozen weights in 4 bits.

Paper: LoRA, arXiv 2106.09685.
"""

from lora.checkpoint import load_adapter, save_adapter
from lora.compatibility import unreached
from lora.inject import (
    apply_lora,
    disabled_adapters,
    lora_modules,
    lora_parameters,
    merge,
    pack_weights,
    unmerge,
)
from lora.layers import LoRALinear
from lora.packed import PackedWeight
from lora.quantized_model import quantize_linears
from lora.state import adapter_state, load_adapter_state, merged_state

__all__ = [
    "LoRALinear",
    "PackedWeight",
    "adapter_state",
    "apply_lora",
    "disabled_adapters",
    "load_adapter",
    "load_adapter_state",
    "lora_modules",
    "lora_parameters",
    "merge",
    "merged_state",
    "pack_weights",
    "quantize_linears",
    "save_adapter",
    "unmerge",
    "unreached",
]
