"""Loading a language model: a hub id, a folder, a GGUF file, or the bundled default."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grpo.errors import ConfigError
from grpo.model.bundled import bundled_model_path
from grpo.model.chat import ChatTemplate
from grpo.model.chat_date import DATE_FILE, saved_date
from grpo.model.full_policy import FullPolicy
from grpo.model.lora_policy import LoRAPolicy
from grpo.model.policy import Policy

if TYPE_CHECKING:
    from grpo.config import Config


def load_policy(config: Config) -> Policy:
    """Load the model and tokenizer that a configuration names, ready to be trained.

    Raises:
        ConfigError: the model is not there, has no chat template, or has no layers of the names
            given for the adapter.
    """
    dtype = getattr(torch, config.dtype)
    model, tokenizer = load_model(config.model, device=choose_device(config.device), dtype=dtype)
    return make_policy(config, model, tokenizer)


def make_policy(config: Config, model: Any, tokenizer: Any) -> Policy:
    """Make a loaded model a policy: one with an adapter, or one that is trained as a whole.

    Raises:
        ConfigError: the model has no layers of the names given for the adapter, or does not fit;
            its chat template refuses messages or loses them.
    """
    adapter = find_adapter(config.adapter) if config.adapter else None
    date = saved_date(*(folder for folder in (adapter, config.model) if folder))
    chat = ChatTemplate(tokenizer, config.chat_template_kwargs, date)
    chat.warn_about_reasoning(config.max_new_tokens)
    options: dict[str, Any] = {
        "forward": config.forward,
        "activation_checkpointing": config.activation_checkpointing,
    }
    targets = list(config.lora_target_modules)
    try:
        if config.train == "full":
            keep_reference = config.uses_reference
            policy: Policy = FullPolicy(model, tokenizer, keep_reference=keep_reference, **options)
        else:
            policy = LoRAPolicy(
                model,
                tokenizer,
                lora_r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_target_modules="all-linear" if targets == ["all-linear"] else targets,
                adapter=adapter,
                seed=config.seed,
                **options,
            )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    policy.chat = chat
    return policy


def choose_device(device: str) -> str:
    """Return the device that an option names; for "auto" a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here: {reason}") from error
    return device


def load_model(name: str, *, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a `transformers` causal language model and its tokenizer.

    Args:
        name: a Hugging Face id, a folder, a .gguf file; empty for the bundled model.
        device: where the model goes.
        dtype: of its weights.

    Raises:
        ConfigError: there is no such model, or it has no chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would break the bars of the run
    try:
        path = Path(name) if name else bundled_model_path()
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
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


def find_adapter(name: str) -> Path:
    """Return the folder of an adapter, of a run's adapter, or of the hub's, downloaded.

    Raises:
        ConfigError: there is no adapter, and the hub does not have it or cannot be reached.
    """
    for folder in (Path(name), Path(name, "adapter")):  # an adapter's folder, or a run's
        if (folder / "adapter_config.json").is_file():
            return folder
    from grpo.config import is_hub_id

    expected = "expected a folder with adapter_config.json, or a hub id such as 'user/name'"
    if not is_hub_id(name):
        raise ConfigError(f"no adapter at {name!r}: {expected}")
    from huggingface_hub import constants, snapshot_download

    files = ["adapter_config.json", "adapter_model.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*files, DATE_FILE]))
    except (OSError, ValueError) as error:
        reason = f"{' '.join(str(error).split()).rstrip('.')} ({constants.ENDPOINT})"
        raise ConfigError(f"no adapter at {name!r}: {expected}; got: {reason}") from error
    if not (folder / files[0]).is_file():
        raise ConfigError(f"no adapter at {name!r}: {expected}; got a repository without that file")
    return folder
