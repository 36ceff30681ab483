"""Loading a language model: a hub id, a folder, a GGUF file, or the bundled default."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from grpo.errors import ConfigError, one_line_reason
from grpo.model.bundled import bundled_model_path
from grpo.model.chat import ChatTemplate
from grpo.model.chat_date import DATE_FILE, saved_date
from grpo.model.device import check_dtype, choose_device, choose_dtype
from grpo.model.full_policy import FullPolicy
from grpo.model.limits import named_limit
from grpo.model.lora_policy import LoRAPolicy, quantize_base
from grpo.model.policy import Policy
from grpo.model.pretrained import (
    quiet_transformers,
    read_pretrained,
    refusing,
)

if TYPE_CHECKING:
    from grpo.config import Config


def load_policy(config: Config) -> Policy:
    """Load the model and tokenizer that a configuration names, ready to be trained.

    Raises:
        ConfigError: the model is not there, has no chat template, or has no layers of the names
            given for the adapter.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    check_dtype(device, dtype)
    model, tokenizer = load_model(
        config.model, device=device, dtype=dtype, quantize=config.quantize
    )
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
    chat.warn_about_reasoning(config.max_completion_tokens)
    options: dict[str, Any] = {
        "forward": config.forward,
        "activation_checkpointing": config.activation_checkpointing,
    }
    targets = list(config.lora_target_modules)
    if config.train == "lora" and not adapter:
        _check_rank(model, config.lora_r, targets)
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
                cuda_graphs=config.cuda_graphs,
                seed=config.seed,
                **options,
            )
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(one_line_reason(error)) from error
    policy.chat = chat
    if config.max_completion_tokens >= policy.max_length:
        thinks = " + max_thought_tokens" * (config.answer == "think")
        raise ConfigError(
            f"max_new_tokens{thinks} must be below the {policy.max_length} tokens that the model "
            f"supports, got {config.max_completion_tokens}"
        )
    if not policy.stop_ids:
        raise ConfigError("the model has no end token: expected eos_token_id in its files")
    return policy


def _check_rank(model: Any, r: int, targets: list[str]) -> None:
    """Check that a layer of the adapter has room for the rank: its correction has no higher one.

    Raises:
        ConfigError: none has.
    """
    chosen = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and (targets == ["all-linear"] or any(f".{name}".endswith(f".{t}") for t in targets))
    ]
    room = max((min(layer.in_features, layer.out_features) for layer in chosen), default=r)
    if r > room:
        raise ConfigError(f"lora_r must be at most {room} with this model's layers, got {r}")


def load_model(
    name: str,
    *,
    device: str,
    dtype: torch.dtype,
    quantize: Literal["none", "8bit", "4bit"] = "none",
) -> tuple[Any, Any]:
    """Load a `transformers` causal language model and its tokenizer.

    Args:
        name: a Hugging Face id, a folder, a .gguf file; empty for the bundled model.
        device: where the model goes.
        dtype: of its weights.
        quantize: how its linear layers' weights are held, frozen. The device holds one plain one
            at a time.

    Raises:
        ConfigError: there is no such model, it has no chat template, or it cannot be quantised.
    """
    source = _source(name)
    if quantize != "none" and find_spec("bitsandbytes") is None:  # before a long read
        raise ConfigError(f"quantize={quantize} needs bitsandbytes: install the extra 'quantized'")
    with refusing(name):
        model, tokenizer = read_pretrained(source, dtype)
        if quantize != "none":
            quantize_base(model, quantize, device)
        model = model.to(device)
    _check_template(name, tokenizer)
    if dtype == torch.float16:
        warnings.warn("float16 has no headroom for gradients; bfloat16 is safer", stacklevel=2)
    return model, tokenizer


def load_chat(config: Config) -> tuple[ChatTemplate, int]:
    """Load the chat template that a configuration names, without the model's weights.

    Returns:
        The template, and the longest row, in tokens, that the model's files name.

    Raises:
        ConfigError: there is no such model, it has no chat template, or one that loses messages.
    """
    from transformers import AutoConfig, AutoTokenizer

    source: dict[str, Any] = {**_source(config.model), "trust_remote_code": False}
    with refusing(config.model), quiet_transformers():
        limit = named_limit(AutoConfig.from_pretrained(**source))
        tokenizer = AutoTokenizer.from_pretrained(**source)
    _check_template(config.model, tokenizer)
    adapter = find_adapter(config.adapter) if config.adapter else None
    date = saved_date(*(folder for folder in (adapter, config.model) if folder))
    return ChatTemplate(tokenizer, config.chat_template_kwargs, date), limit


def _check_template(name: str, tokenizer: Any) -> None:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"model {name!r} has no chat template: expected an instruction-tuned model"
        )


def _source(name: str) -> dict[str, str]:
    """Return the arguments of `from_pretrained` for a model's name.

    Raises:
        ConfigError: it is neither a folder, nor a GGUF file, nor has the form of a hub id.
    """
    from grpo.config import is_hub_id

    try:
        path = Path(name) if name else bundled_model_path()
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ConfigError(one_line_reason(error)) from error
    if path.suffix == ".gguf" and is_file:
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not is_folder and (path.is_absolute() or name.startswith(".") or not is_hub_id(name)):
        raise ConfigError(
            f"no model at {name!r}: expected a folder, a .gguf file or a hub id such as "
            "'LiquidAI/LFM2-350M'"
        )
    return {"pretrained_model_name_or_path": str(path)}


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
    if Path(name).exists() or not is_hub_id(name):  # `runs/name` is not looked for on the hub
        is_run = Path(name, "config.yaml").is_file()
        hint = "; got a run without one: has it finished?" if is_run else ""
        raise ConfigError(f"no adapter at {name!r}: {expected}{hint}")
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
