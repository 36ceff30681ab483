"""Tiny models with random weights, a tokenizer of sixteen words, and LFM2-350M's shape."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from torch import nn

from envs.base import Task
from envs.scripted import ScriptedEnv
from grpo.model import tiny

# The clicks of this page are four of the words, so that a random token is right 1 time in 16.
TASK = Task("click-word", 7)
PAGE = asyncio.run(ScriptedEnv().reset(TASK))
WORDS = ["<eos>", "<unk>", *PAGE.actions, "noop()", "Click", "Goal:", "Page:", "text"]
WORDS += ["[0]", "a", "b", "c", "d"]

SIZES: dict[str, Any] = {"vocab_size": len(WORDS)} | tiny.SIZES
LFM2_350M: dict[str, Any] = {  # the configuration of LiquidAI/LFM2-350M: 354.5 M parameters
    "vocab_size": 65536,
    "hidden_size": 1024,
    "intermediate_size": 6656,  # LFM2 itself adjusts it to 4608
    "num_hidden_layers": 16,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128_000,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
TINY_LFM2: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 4,
    "full_attn_idxs": [1, 3],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.1,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "pad_token_id": None,
}


def make_llama(**sizes: Any) -> Any:
    """Make a Llama of two layers: `make_model("llama", **sizes)`."""
    return tiny.make_llama(**(SIZES | sizes))


def make_model(family: str, **sizes: Any) -> Any:
    """Make a float32 model of two or three layers, always with the same random weights.

    Args:
        family: "llama", "mistral" (a sliding window of 3) or "lfm2" (two convolutions, one
            attention, biases that are not zero).
        sizes: of the model's configuration, in place of those in `SIZES`.
    """
    from transformers import Lfm2Config, Lfm2ForCausalLM, MistralConfig, MistralForCausalLM

    if family == "llama":
        return make_llama(**sizes)
    sizes = SIZES | sizes
    torch.manual_seed(0)
    if family == "mistral":
        config = MistralConfig(num_hidden_layers=2, sliding_window=3, **sizes)
        return MistralForCausalLM(config).eval()
    layers = ["conv", "full_attention", "conv"]
    lfm2 = Lfm2Config(num_hidden_layers=3, layer_types=layers, block_auto_adjust_ff_dim=False,
                      conv_bias=True, **sizes)  # fmt: skip
    model = Lfm2ForCausalLM(lfm2).eval()
    for name, bias in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(bias, std=0.5)
    return model


def make_lfm2(sizes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Make an LFM2 of these sizes, always with the same random weights."""
    from transformers import AutoModelForCausalLM, Lfm2Config

    config = Lfm2Config(**sizes)
    # vLLM reads these fields from the file, too; `transformers` does not write them.
    config.block_dim = config.conv_dim = config.hidden_size
    config.block_ff_dim = config.intermediate_size
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")  # float32: fast
    return round_weights(model, dtype).eval()


def save_tiny_lfm2(folder: str | Path, tokenizer: Any) -> None:
    """Write a tiny LFM2 with a tokenizer to a folder that `--model` accepts."""
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    make_lfm2(TINY_LFM2 | words).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> Any:
    """Make a tokenizer of one token per word; its chat template is the messages' texts."""
    return tiny.make_tokenizer(WORDS)


def round_weights(model: Any, dtype: torch.dtype) -> Any:
    """Convert the weights as loading in that dtype does; `model.to` would convert buffers too."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model


def to_float64(model: Any) -> Any:
    """Convert a model to float64, with norms that compute in it.

    The norms of `transformers` compute in float32 whatever their input; they are replaced.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.numel(), eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    return model.double()
