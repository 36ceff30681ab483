"""Rows like those of a browser agent's update: long prompts that share prefixes, short completions.

Token ids are random, so completions share nothing, which is the worst case for the token tree:
sampled completions often begin alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from grpo.tree.token_tree import build_tree
from grpo.types import TokenBatch


@dataclass(frozen=True)
class Workload:
    """The rows of one step.

    Attributes:
        groups: groups in the step.
        group_size: episodes per group.
        prompt: tokens per prompt.
        shared_prefix: tokens at the start of every prompt that are the same in all of them
            (system prompt and worked examples).
        completion: maximum number of tokens per completion; the minimum is a quarter of it.
        pages: for each turn of an episode, how many different pages its group has there; each
            episode gets one of them at random.
    """

    groups: int = 4
    group_size: int = 8
    prompt: int = 317
    shared_prefix: int = 170
    completion: int = 16
    pages: tuple[int, ...] = (1,)

    def batch(self, vocabulary: int, seed: int = 0) -> TokenBatch:
        """Draw the rows, with random advantages and weights that average over all tokens.

        Args:
            vocabulary: token ids are below this number.
            seed: random seed.

        Returns:
            [N, T] rows, N = groups * group_size * turns.
        """
        random = torch.Generator().manual_seed(seed)

        def ids(length: int) -> list[int]:
            return torch.randint(5, vocabulary, (length,), generator=random).tolist()

        def number(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=random))

        prefix = ids(min(self.shared_prefix, self.prompt))
        prompts: list[list[int]] = []
        completions: list[list[int]] = []
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
    """Count the operations of a forward and backward that compute every distinct token once.

    Only matrix products count (2 operations per multiply-add): the frozen linear layers, forward
    and for the gradient of their input; LoRA's, also for the gradients of A and B; attention of
    each token over its own prefix, two products forward and four backward; the output head at the
    distinct prefixes of sampled tokens, forward and for their gradient.

    Args:
        batch: the rows.
        config: configuration of a Llama-shaped model.
        lora_r: rank of the adapter, which is on every linear layer.
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
    return float(config.num_hidden_layers * (linear + lora + attention) + head)
