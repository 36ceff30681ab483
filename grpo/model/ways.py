"""Every way in which training computes a model's logits, on a probe, for the check at load time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grpo.model.decoding import PromptDecoder
from grpo.model.forward import SharedPrefix, padded_hidden, tree_hidden
from grpo.model.packed import packed_hidden
from grpo.model.probe import SHARED, Logits, Probe, own_logits
from grpo.tree.layers import prepare
from grpo.tree.token_tree import build_tree
from grpo.tree.tree_cache import TreeCache
from grpo.types import TokenBatch

DECODED = 3
"""Tokens at the end of a long row that are decoded one by one."""


def own(probe: Probe) -> Logits:
    """Compute each row by itself, through the model's own forward."""
    return own_logits(probe.model, probe.rows), probe.all_tokens


def tree(probe: Probe) -> Logits:
    """Compute all rows as one tree."""
    hidden = _tree_rows(probe, range(len(probe.rows)), None)
    return probe.head(hidden), probe.all_tokens


def shared_prefix(probe: Probe) -> Logits:
    """Compute the tokens that begin every row first, then the rows in two micro-batches."""
    return in_parts(probe)[0]


def in_parts(probe: Probe) -> tuple[Logits, SharedPrefix]:
    """Do what `shared_prefix` does, and return the prefix for the backward pass as well."""
    tokens = torch.tensor(probe.rows[0][:SHARED])
    prefix = SharedPrefix(probe.decoder, tokens, prepare(probe.decoder))
    halves = [_tree_rows(probe, rows, prefix) for rows in (range(2), range(2, len(probe.rows)))]
    return (probe.head(torch.cat(halves)), probe.all_tokens), prefix


def _tree_rows(probe: Probe, rows: range, prefix: SharedPrefix | None) -> Tensor:
    tree = build_tree(probe.rows[rows.start : rows.stop])
    hidden = tree_hidden(probe.decoder, tree, prepare(probe.decoder), prefix)
    return hidden[tree.nodes[tree.nodes >= 0].to(hidden.device)]


def tree_cache(probe: Probe) -> Logits:
    """Decode two requests side by side in the tree cache; the others arrive later."""
    rows = probe.rows
    cache = TreeCache(
        probe.decoder, sum(map(len, rows)), probe.model.device, prepare(probe.decoder)
    )
    for missing in range(DECODED, -1, -1):
        for row in rows[:2]:
            cache.insert(-1, row[: len(row) - missing])
        cache.compute()
    hidden = [_states(cache, row) for row in rows[:2]]
    cache.keep_shared_prefix()
    for row in rows[2:]:
        cache.insert(-1, row)
    cache.compute()
    hidden += [_states(cache, row) for row in rows[2:]]
    return probe.head(torch.cat(hidden)), probe.all_tokens


def _states(cache: TreeCache, row: Sequence[int]) -> Tensor:
    return cache.states(np.array([cache.insert(-1, row[: n + 1]) for n in range(len(row))]))


def padded(probe: Probe) -> Logits:
    """Compute all rows as one batch, padded."""
    batch = _batch(probe.rows)
    width = batch.input_ids.shape[1]
    hidden = padded_hidden(probe.decoder, batch.to(probe.model.device), width)
    return probe.head(hidden[batch.token_mask.to(hidden.device)]), probe.all_tokens


def packed(probe: Probe) -> Logits:
    """Compute all rows as one batch, without padding."""
    return probe.head(packed_hidden(probe.decoder, _batch(probe.rows))), probe.all_tokens


def _batch(rows: Sequence[Sequence[int]]) -> TokenBatch:
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(width) < lengths[:, None]
    empty = torch.zeros(mask.shape)
    return TokenBatch(ids, mask, mask, empty, torch.zeros(len(rows)), empty)


def cached(probe: Probe) -> Logits:
    """Decode with the model's own cache."""
    return _decoded(probe, use_cache=True)


def uncached(probe: Probe) -> Logits:
    """Decode, computing every token again at each step."""
    return _decoded(probe, use_cache=False)


def _decoded(probe: Probe, *, use_cache: bool) -> Logits:
    """Continue the prefix of all rows, which leave as they end, and then the longest row alone."""
    *short, long = range(len(probe.rows))
    hidden: list[Tensor] = []
    tokens: list[int] = []
    for numbers, length in ((short, SHARED), ([long], len(probe.rows[long]) - DECODED)):
        prompt = probe.rows[numbers[0]][:length]
        decoder = PromptDecoder(probe.decoder, prompt, probe.model.device, use_cache=use_cache)
        hidden.append(decoder.start())
        tokens.append(probe.starts[numbers[0]] + length - 1)
        rows = dict.fromkeys(numbers, 0)  # all continue the prompt's only row
        while active := [n for n in rows if len(probe.rows[n]) > length]:
            new = [probe.rows[n][length] for n in active]
            hidden.append(decoder.extend([rows[n] for n in active], new))
            tokens += [probe.starts[n] + length for n in active]
            rows = {n: i for i, n in enumerate(active)}
            length += 1
    return probe.head(torch.cat(hidden)), tokens
