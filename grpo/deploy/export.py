"""The program behind `grpo export`: a run's policy for other programs."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from grpo.deploy.export_check import (
    Chat,
    Comparison,
    apply_adapter,
    compare,
    read_back,
    short_enough,
    trainer_completions,
)
from grpo.deploy.export_merged import write_merged
from grpo.deploy.export_modelfile import modelfile
from grpo.deploy.export_options import ExportOptions
from grpo.deploy.gguf_model import write_adapter, write_model
from grpo.errors import ConfigError
from grpo.files import read_json, replacing, write_text
from grpo.model.device import check_dtype, choose_device, choose_dtype
from grpo.model.loading import load_model, make_policy
from grpo.model.lora_policy import LoRAPolicy
from grpo.model.policy import Policy
from grpo.safe_output import one_line

MARK = "export.json"
"""Says what an export is; a folder with other files and without it is not replaced."""

CONTEXT = 8192
"""Tokens of a prompt and its completion in Ollama, where neither run nor model has fewer."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def export(
    options: ExportOptions,
    *,
    grammars: Mapping[str, str],
    recorded: Callable[[Path, int], list[Chat]],
) -> Comparison | None:
    """Write a run's policy, then compare its greedy completions with the trainer's.

    Args:
        options: what to write, and where.
        grammars: the action format by the name of its file.
        recorded: returns at most so many chats of a run or a file, to be compared.

    Returns:
        The comparison; None if there is nothing to compare.

    Raises:
        ConfigError: there is no finished run, or it cannot be written in that format.
        OSError: a file could not be read or written; nothing is left of the new folder.
    """
    folder, tokens = options.folder, options.config.max_completion_tokens
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise ConfigError(f"{folder} is not empty, and no export: choose another folder (-o)")
    try:
        chats = recorded(options.prompts, options.pages) if options.pages else []
    except ValueError as error:
        raise ConfigError(str(error)) from error
    policy = load_float32(options)
    with replacing(folder) as unfinished:
        try:
            unfinished.mkdir()
            files = _write(options, policy, unfinished)
            facts = _facts(options, policy)
            for name, text in {**grammars, **files, MARK: _as_text(facts)}.items():
                (unfinished / name).write_text(text, encoding="utf-8")
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    print(f"{folder}/  {', '.join(sorted(path.name for path in folder.iterdir()))}", flush=True)

    chats = short_enough(policy, chats, tokens)
    if not chats:
        if options.pages:
            print(
                "not compared: no recorded page in "
                f"{one_line(options.prompts)}; grpo eval --adapter RUN records some"
            )
        return None
    print(f"comparing {len(chats)} recorded pages", flush=True)
    expected = trainer_completions(policy, chats, tokens)
    like, stop_ids = policy.chat, sorted(policy.stop_ids)
    del policy
    gc.collect()  # one model at a time
    model, tokenizer = _read(options)
    found = compare(model, tokenizer, chats, expected, like, stop_ids, tokens)
    write_text(folder / MARK, _as_text(facts | {"compared": found.n, "equal": found.equal}))
    print(f"{found.equal} of {found.n} greedy completions equal the trainer's")
    if found.first:
        print(f"the first that differs: {one_line(found.first[1])}")
        print(f"           the trainer: {one_line(found.first[0])}")
    return found


def load_float32(options: ExportOptions) -> Policy:
    """Load a run's policy with the weights that it was trained with, to compute in float32.

    The base is rounded to the run's dtype first, as in training; merging rounds nothing then.

    Raises:
        ConfigError: see `grpo.model.loading.load_policy`.
    """
    config = options.config
    own = config.replace(dtype="float32", beta=0.0, log_kl=False)  # no reference
    return make_policy(own, *_load_base(options))


def _load_base(options: ExportOptions) -> tuple[Any, Any]:
    config = options.config
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    check_dtype(device, dtype)
    model, tokenizer = load_model(
        config.model, device=device, dtype=dtype, quantize=config.quantize
    )
    return model.float(), tokenizer


def _write(options: ExportOptions, policy: Policy, folder: Path) -> dict[str, str]:
    """Write the weights; return the texts that belong beside them, by the files' names."""
    config, model = options.config, policy.model
    if options.to == "merged":
        write_merged(policy, folder, DTYPES[options.kind], config.max_completion_tokens)
        return {}
    if options.to == "gguf":
        base, adapter = "./model.gguf", ""
        write_model(
            folder / base,
            model.config,
            policy.merged,
            policy.tokenizer,
            options.kind,
            policy.chat.end_id,
        )
    else:
        assert isinstance(policy, LoRAPolicy)
        base, adapter = "./base.gguf", "./adapter.gguf"
        write_adapter(folder / adapter, model.config, policy.layers(), options.kind)
    tokens = config.max_completion_tokens
    room = config.max_prompt_tokens + tokens if config.max_prompt_tokens else CONTEXT
    text = modelfile(
        policy.chat,
        base=base,
        adapter=adapter,
        stop=[policy.tokenizer.decode([i]) for i in sorted(policy.stop_ids)],
        context=min(policy.max_length, room),
        max_new_tokens=tokens,
    )
    return {"Modelfile": text}


def _read(options: ExportOptions) -> tuple[Any, Any]:
    """Read what was written: a model and its tokenizer."""
    folder = options.folder
    if options.to == "merged":
        return read_back(folder, DTYPES[options.kind])
    if options.to == "gguf":
        return read_back(folder / "model.gguf", torch.float32)
    model, tokenizer = _load_base(options)
    apply_adapter(model, folder / "adapter.gguf")
    return model, tokenizer


def _facts(options: ExportOptions, policy: Policy) -> dict[str, Any]:
    """Describe an export, for `MARK`."""
    run = read_json(options.run / "run.json").get("id", "")
    return {
        "run": run,
        "to": options.to,
        "type": options.kind,
        "base": Path(policy.name).name if Path(policy.name).exists() else policy.name,
        "chat_template_kwargs": dict(options.config.chat_template_kwargs),
        "answer": options.config.prompt.rpartition(":")[2] or options.config.answer,
        "max_new_tokens": options.config.max_completion_tokens,
    }


def _as_text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2) + "\n"
