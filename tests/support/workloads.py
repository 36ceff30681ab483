"""Rows like those of a browser agent's update, and models of LFM2's shape with random weights.

The rows have long prompts that share and short answers. Token ids are random. Nothing but the
prompts is shared, so the completions, which in earnest often begin alike, are the worst case
for the token tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo.tree.token_tree import build_tree
from grpo.types import TokenBatch

LFM2_350M: dict[str, Any] = {  # the configuration of LiquidAI/LFM2-350M: 354.5 M parameters
    "vocab_size": 65536,
    "hidden_size": 1024,
    "intermediate_size": 6656,  # 4608 after LFM2's own adjustment
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


def make_lfm2(sizes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """An LFM2 with random weights, always the same ones."""
    from transformers import AutoModelForCausalLM, Lfm2Config

    config = Lfm2Config(**sizes)
    # What vLLM reads from the file beside what `transformers` does.
    config.block_dim = config.conv_dim = config.hidden_size
    config.block_ff_dim = config.intermediate_size
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")  # float32: fast
    return round_weights(model, dtype).eval()


def round_weights(model: Any, dtype: torch.dtype) -> Any:
    """Give the weights another dtype, as loading in it does; `to` would round buffers too."""
    for p in model.parameters():
        p.data = p.data.to(dtype)
    return model


def save_tiny_lfm2(folder: str | Path, tokenizer: Any) -> None:
    """Write a tiny LFM2 with a tokenizer as a folder that `--model` takes."""
    words = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    make_lfm2(TINY_LFM2 | words).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Workload:
    """The rows of one step.

    Attributes:
        groups: tasks in the step.
        group_size: episodes of a task.
        prompt: tokens of a prompt.
        prefix: of them, what all prompts share (system prompt and worked examples).
        completion: most tokens of a completion; a quarter of it is the fewest.
        pages: for each turn of an episode the number of different pages of a group there;
            an episode sees one of them.
    """

    groups: int = 4
    group_size: int = 8
    prompt: int = 317
    prefix: int = 170
    completion: int = 16
    pages: tuple[int, ...] = (1,)

    def batch(self, vocabulary: int, seed: int = 0) -> TokenBatch:
        """[N, T] rows with N = groups * group_size * turns, random advantages, token mean."""
        random = torch.Generator().manual_seed(seed)

        def ids(length: int) -> list[int]:
            return torch.randint(5, vocabulary, (length,), generator=random).tolist()

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=random))

        prefix, prompts, completions = ids(min(self.prefix, self.prompt)), [], []
        for _ in range(self.groups):
            pages = [[ids(self.prompt - len(prefix)) for _ in range(n)] for n in self.pages]
            for _ in range(self.group_size):
                for turn in pages:
                    prompts.append(prefix + turn[number(0, len(turn))])
                    shortest = max(1, self.completion // 4)
                    completions.append(ids(number(shortest, self.completion + 1)))
        shape = (len(prompts), self.prompt + max(map(len, completions)))
        input_ids = torch.zeros(shape, dtype=torch.long)
        lengths = torch.zeros(len(prompts), 1, dtype=torch.long)
        for n, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = torch.tensor(prompt + completion)
            input_ids[n, : len(row)], lengths[n] = row, len(row)
        column = torch.arange(shape[1])
        completion_mask = (column >= self.prompt) & (column < lengths)
        return TokenBatch(
            input_ids=input_ids,
            token_mask=column < lengths,
            completion_mask=completion_mask,
            sampling_logprobs=torch.zeros(shape),
            advantages=torch.randn(shape[0], generator=random),
            token_weights=completion_mask / completion_mask.sum(),
        )


def floor_operations(batch: TokenBatch, config: Any, lora_r: int) -> float:
    """Operations of a forward and a backward that compute every distinct token once.

    Counted are the products (2 a multiply-add): the frozen linear layers forward and for
    the gradient of their input; LoRA's, with the gradients of A and B too; attention of
    each token over its own prefix, two products forward and four backward; the output head
    at the distinct prefixes of sampled tokens, forward and for their gradient.

    Args:
        batch: the rows.
        config: of a Llama-shaped model.
        lora_r: rank of the adapter, which sits on every linear layer.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    queries, keys = (n * head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    shapes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    tree = build_tree(batch.rows())
    pairs = int((tree.depths + 1).sum())
    sampled = tree.parents[tree.nodes[batch.completion_mask]].unique()
    linear = 2 * 2 * len(tree) * sum(a * b for a, b in shapes)
    lora = 2 * 3 * len(tree) * lora_r * sum(a + b for a, b in shapes)
    attention = 2 * (2 + 4) * pairs * queries
    head = 2 * 2 * len(sampled) * hidden * config.vocab_size
    return config.num_hidden_layers * (linear + lora + attention) + head
