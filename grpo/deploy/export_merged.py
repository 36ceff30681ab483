"""A policy as a plain model of `transformers`, any adapter merged into its weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from grpo.errors import ConfigError
from grpo.model.policy import Policy
from grpo.model.pretrained import quiet_transformers


def write_merged(policy: Policy, folder: Path, dtype: torch.dtype, max_new_tokens: int) -> None:
    """Write a folder that `transformers` and vLLM read.

    Args:
        policy: with float32 weights, which are rounded once.
        folder: where the files go.
        dtype: of the weights.
        max_new_tokens: of a completion; the folder's default.

    Raises:
        ConfigError: the adapter cannot be merged, or `transformers` would not load the model.
        OSError: it could not be written.
    """
    from safetensors import SafetensorError

    model = _empty_like(policy.model, dtype)
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in policy.merged()
    }
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = generation_config(policy, max_new_tokens)
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(f"cannot write {folder}: {error}") from error


def generation_config(policy: Policy, max_new_tokens: int) -> Any:
    """Return how the trainer decodes: greedily here, and up to the tokens that end a turn."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(policy.stop_ids),
        bos_token_id=policy.tokenizer.bos_token_id,
        pad_token_id=policy.tokenizer.pad_token_id,
    )


def _empty_like(model: Any, dtype: torch.dtype) -> Any:
    """Make a model of the same class without memory for its weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # the text part of a larger model
        raise ConfigError(
            f"cannot export a {type(model).__name__}: transformers does not load a saved model of "
            f"type {model.config.model_type!r}"
        )
    config = copy.deepcopy(model.config)
    config.dtype = dtype
    with torch.device("meta"):
        return type(model)(config).to(dtype)
