"""Reading a model's files with `transformers`: a model comes whole, or is refused in one line.

`transformers` fills what a file lacks with random numbers, ignores what it does not expect, and
reports broken files by exceptions of many kinds.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

import torch

from grpo.errors import ConfigError, one_line_reason

_OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$")
"""Architectures that do not predict the next token, e.g. BertForMaskedLM."""


@contextmanager
def refusing(model: str) -> Iterator[None]:
    """Within this context any failure is a ConfigError that names the model.

    Files of others are broken in more ways than can be listed, and `transformers` lets all kinds
    of exceptions through.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"cannot load model {model!r}: {error}") from error
    except Exception as error:
        reason = one_line_reason(error)
        if "trust_remote_code" in reason:
            reason = (
                "it comes with its own code, which is never run: expected a model type that "
                "transformers has"
            )
        raise ConfigError(f"cannot load model {model!r}: {reason}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep reports and progress bars, which are many lines, off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would break the bars of the run
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def read_pretrained(source: dict[str, str], dtype: torch.dtype) -> tuple[Any, Any]:
    """Read a causal language model and its tokenizer, on the CPU.

    Args:
        source: `pretrained_model_name_or_path`, and `gguf_file` for a GGUF file, whose weights
            become plain ones.
        dtype: of the weights.

    Returns:
        The model and the tokenizer.

    Raises:
        ConfigError: the weights are quantised, incomplete, of other shapes or not finite; it is
            another kind of model; the tokenizer has more tokens than the model.
        Exception: anything that `transformers` raises for files that it cannot read.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    # Asked for on standard input otherwise. False: the library never runs a model's own code.
    options: dict[str, Any] = source | {"trust_remote_code": False}
    with quiet_transformers():
        if "gguf_file" not in source:
            _check_kind(AutoConfig.from_pretrained(**options))
        tokenizer = AutoTokenizer.from_pretrained(**options)
        if "gguf_file" in source and hasattr(transformers, "GgufConfig"):  # or blocks stay packed
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        options |= {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any
        try:
            loaded = AutoModelForCausalLM.from_pretrained(**options, attn_implementation="sdpa")
        except (ValueError, ImportError) as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            loaded = AutoModelForCausalLM.from_pretrained(**options, attn_implementation="eager")
    model, report = loaded
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        if "gguf_file" not in source:
            raise ConfigError("its weights are quantised: expected plain ones")
        quantizer.remove_quantization_config(model)  # or the model cannot be saved
    _check_weights(model, report)
    _check_vocabulary(model, tokenizer)
    return model, tokenizer


def _check_kind(config: Any) -> None:
    """Check what a model's configuration says, before its weights are read."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = config.get_text_config(decoder=True)
    marks = (getattr(c, "quantization_config", None) for c in (config, text))
    mark = next((m for m in marks if m is not None), None)
    if mark is not None:
        method = mark.get("quant_method") if isinstance(mark, dict) else None
        raise ConfigError(
            f"its weights are quantised ({method or 'unknown method'}), which cannot be trained: "
            "expected the model with plain weights"
        )
    kind = config.model_type
    if config.is_encoder_decoder:
        raise ConfigError(f"expected a causal language model, got an encoder-decoder, {kind}")
    other = [name for name in config.architectures or [] if _OTHER_HEAD.search(str(name))]
    if other or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"expected a causal language model, got {', '.join(other) or kind}")


def _check_weights(model: Any, report: dict[str, Any]) -> None:
    """Check that every weight of the model is from the file, and finite.

    Raises:
        ConfigError: one is not, or the file has more for a part that the model has.
    """
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        raise ConfigError(f"the shape of {name} must be {list(ours)}, got {list(theirs)}")
    if report["missing_keys"]:  # tied weights and what a model may lack are left out already
        raise ConfigError(f"its files lack {_listing(report['missing_keys'])}")
    modules = dict(model.named_modules())
    outside = ("", model.base_model_prefix)
    unused = set(report["unexpected_keys"])
    extra = {name for name in unused if _deepest_module(name, modules) not in outside}
    if extra:
        raise ConfigError(
            f"its files have {_listing(extra)}, for which the model has no place: does its "
            "config.json belong to them?"
        )
    if unused:  # of whole other parts, e.g. a vision tower
        warnings.warn(f"not used of the model's files: {_listing(unused)}", stacklevel=2)
    for name, p in model.named_parameters():
        if p.is_meta:
            raise ConfigError(f"its files lack {name}")
        if p.is_floating_point() and p.numel() and not torch.stack(p.aminmax()).isfinite().all():
            raise ConfigError(f"{name} is not finite in {p.dtype}".replace("torch.", ""))


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Check that text cannot become a token that the model does not have.

    Control tokens may lie outside: text never becomes one. Reading a GGUF file adds some.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    ids = set(tokenizer.get_vocab().values())
    ids -= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    last = max([*ids, tokenizer.eos_token_id or 0], default=-1)
    if not ids or last >= rows:
        raise ConfigError(
            f"its tokenizer has {len(ids)} tokens with ids up to {last}, expected less than the "
            f"model's {rows} embeddings"
        )


def _deepest_module(name: str, modules: Collection[str]) -> str:
    """Return the longest prefix of a tensor's name that is a module of the model."""
    while name:
        name = name.rpartition(".")[0]
        if name in modules:
            break
    return name


def _listing(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
