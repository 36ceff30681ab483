"""Greedy completions of an exported model beside the trainer's, on the same chats."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from envs.base import Message
from grpo.deploy.gguf_model import Layout
from grpo.generators.local import LocalGenerator
from grpo.model.chat import ChatTemplate
from grpo.model.policy import Policy
from grpo.model.pretrained import read_pretrained

Chat = tuple[Message, ...]


class Comparison(NamedTuple):
    """How many completions are equal, token by token, and the first that is not.

    Attributes:
        n: number of completions.
        equal: how many are the trainer's.
        first: the trainer's and the exported model's text where they first differ; empty if equal.
    """

    n: int
    equal: int
    first: tuple[str, ...]


def short_enough(policy: Policy, chats: Sequence[Chat], max_new_tokens: int) -> list[Chat]:
    """Leave out chats that are too long for the model."""
    room = policy.max_length - max_new_tokens
    return [chat for chat in chats if len(policy.chat.prompt(chat)) <= room]


def trainer_completions(
    policy: Policy, chats: Sequence[Chat], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Decode greedily with the trainer's generator; return the ids of each completion."""

    async def decode() -> list[tuple[int, ...]]:
        generator = LocalGenerator(policy, max_new_tokens=max_new_tokens)
        prompts = [policy.chat.prompt(chat) for chat in chats]
        found = [generator.generate(prompt, seed=0, temperature=0.0) for prompt in prompts]
        return [completion.completion_ids for completion in await asyncio.gather(*found)]

    return asyncio.run(decode())


def read_back(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Read an export with `transformers`.

    Args:
        path: of the folder, or of a GGUF file.
        dtype: in which the model computes.

    Returns:
        The model and its tokenizer.
    """
    source = {"pretrained_model_name_or_path": str(path)}
    if path.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    return read_pretrained(source, dtype)


@torch.no_grad()
def apply_adapter(model: Any, path: Path) -> None:
    """Add the corrections of an adapter's GGUF to the weights of its base."""
    import gguf

    reader, layout = gguf.GGUFReader(path), Layout(model.config)
    alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    tensors = {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy())
        for t in reader.tensors
    }
    names = {layout.name(name): name for name, _ in model.named_parameters()}
    for name in [name for name in tensors if name.endswith(".lora_a")]:
        own = name.removesuffix(".lora_a")
        a, b = tensors[name], tensors[f"{own}.lora_b"]
        rows = layout.arrange(own, torch.arange(len(b)))
        correction = torch.empty(len(b), a.shape[1])
        correction[rows] = alpha / len(a) * (b @ a)
        weight = model.get_parameter(names[own])
        weight.data += correction.to(weight)


@torch.no_grad()
def compare(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    expected: Sequence[tuple[int, ...]],
    like: ChatTemplate,
    stop_ids: Sequence[int],
    max_new_tokens: int,
) -> Comparison:
    """Decode with the `generate` of `transformers`.

    Args:
        model: what was read back.
        tokenizer: its tokenizer, whose chat template reads the chats.
        chats: to be continued.
        expected: the trainer's completions of them.
        like: the run's chat template, whose options and date the other one gets.
        stop_ids: tokens that end a completion.
        max_new_tokens: of a completion.
    """
    chat = ChatTemplate(tokenizer, like.options, like.date)
    equal, first = 0, ()
    for messages, ids in zip(chats, expected, strict=True):
        prompt = torch.tensor([chat.prompt(messages)], device=model.device)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stop_ids),
            pad_token_id=stop_ids[0],
        )
        found = tuple(output[0, prompt.shape[1] :].tolist())
        equal += found == ids
        if found != ids and not first:
            first = tuple(tokenizer.decode(text) for text in (ids, found))
    return Comparison(len(chats), equal, first)
