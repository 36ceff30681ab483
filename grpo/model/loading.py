"""Loading a language model: a hub id, a folder, a GGUF file, or the bundled default."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from grpo.config import Config, ConfigError
from grpo.model.bundled import bundled_model_path
from grpo.model.lora_policy import FullPolicy, LoRAPolicy
from grpo.model.policy import Policy
from grpo.reporting.hub import find_adapter


def load_policy(config: Config) -> Policy:
    """Load the model and tokenizer that a configuration names, ready to be trained.

    Raises:
        ConfigError: the model is not there, has no chat template, or has no layer of the
            names given for the adapter.
    """
    dtype = getattr(torch, config.dtype)
    model, tokenizer = load_model(config.model, device=choose_device(config), dtype=dtype)
    return make_policy(config, model, tokenizer)


def make_policy(config: Config, model: Any, tokenizer: Any) -> Policy:
    """Make what a configuration trains of a loaded model: an adapter, or every weight.

    Raises:
        ConfigError: the model has no layer of the names given for the adapter, or does not fit.
    """
    targets = config.lora_target_modules
    how: dict[str, Any] = {
        "forward": config.forward,
        "activation_checkpointing": config.activation_checkpointing,
    }
    try:
        if config.train == "full":
            return FullPolicy(model, tokenizer, keep_reference=config.uses_reference, **how)
        return LoRAPolicy(
            model,
            tokenizer,
            lora_r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_target_modules=targets if targets == "all-linear" else targets.split(","),
            adapter=find_adapter(config.adapter) if config.adapter else None,
            seed=config.seed,
            **how,
        )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def choose_device(config: Config) -> str:
    """The device a configuration names; for "auto" a GPU where there is one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(name: str, *, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a `transformers` causal language model and its tokenizer.

    Args:
        name: a Hugging Face id, a folder, a .gguf file; empty for the bundled model.
        device: where it goes.
        dtype: of its weights.

    Raises:
        ConfigError: there is no such model, or it cannot be chatted with.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would break the bars of the run
    path = Path(name) if name else bundled_model_path()
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if path.suffix == ".gguf" and path.is_file():
        source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    elif name and not path.is_dir():
        if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
            raise ConfigError(
                f"no model at {name!r}: expected a folder, a .gguf file or a hub id such as "
                "'LiquidAI/LFM2-350M'"
            )
        source = {"pretrained_model_name_or_path": name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            **source, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot load model {name!r}: {reason}") from error
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"model {name!r} has no chat template: expected an instruction-tuned model"
        )
    if dtype == torch.float16:
        warnings.warn("float16 has no headroom for gradients; bfloat16 is safer", stacklevel=2)
    return model.to(device), tokenizer
