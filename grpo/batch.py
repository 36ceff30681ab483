"""Groups of episodes -> the tensors of the loss.

Here it is decided once, for the whole step, how tokens are averaged: what comes after may
cut the batch anywhere and the gradient stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo.advantages import Baseline, Scale, group_advantages
from grpo.losses import Aggregation, token_weights
from grpo.tree import split_rows
from grpo.types import Group, TokenBatch


def make_batch(
    groups: Sequence[Group],
    *,
    scale_rewards: Scale = "group",
    baseline: Baseline = "mean",
    aggregation: Aggregation = "dapo",
    max_completion_length: int | None = None,
    drop_zero_advantages: bool = False,
) -> TokenBatch | None:
    """Lay out a step's turns as rows.

    Every turn of an episode carries the episode's advantage. Rows that teach nothing may be
    left out; the token weights are made before that, so the others' gradient stays as it is.

    Args:
        groups: the step's groups.
        scale_rewards: "group", "batch" or "none" (see `group_advantages`).
        baseline: "mean" or "leave_one_out".
        aggregation: "grpo", "bnpo", "dr_grpo" or "dapo" (see `token_weights`).
        max_completion_length: the constant of "dr_grpo".
        drop_zero_advantages: leave out rows of advantage 0. Right where the loss is a
            multiple of the advantage, wrong with a KL penalty.

    Returns:
        The batch, or None if no row is left.
    """
    episodes = [(g, episode) for g, group in enumerate(groups) for episode in group.episodes]
    episode_advantages = group_advantages(
        torch.tensor([episode.reward for _, episode in episodes]),
        torch.tensor([g for g, _ in episodes]),
        scale=scale_rewards,
        baseline=baseline,
    )
    turns = [(e, turn) for e, (_, episode) in enumerate(episodes) for turn in episode.turns]
    width = max(len(t.completion.prompt_ids) + len(t.completion.completion_ids) for _, t in turns)
    shape = (len(turns), width)
    input_ids = torch.zeros(shape, dtype=torch.long)
    token_mask = torch.zeros(shape, dtype=torch.bool)
    completion_mask = torch.zeros(shape, dtype=torch.bool)
    sampling_logprobs = torch.zeros(shape)
    for n, (_, turn) in enumerate(turns):
        completion = turn.completion
        start = len(completion.prompt_ids)
        stop = start + len(completion.completion_ids)
        input_ids[n, :stop] = torch.tensor(completion.prompt_ids + completion.completion_ids)
        token_mask[n, :stop] = True
        completion_mask[n, start:stop] = True
        sampling_logprobs[n, start:stop] = torch.tensor(completion.logprobs)
    episode_of_row = torch.tensor([e for e, _ in turns])
    batch = TokenBatch(
        input_ids=input_ids,
        token_mask=token_mask,
        completion_mask=completion_mask,
        sampling_logprobs=sampling_logprobs,
        advantages=episode_advantages[episode_of_row],
        token_weights=token_weights(
            completion_mask,
            aggregation,
            max_completion_length=max_completion_length,
            episode_ids=episode_of_row,
        ),
    )
    if drop_zero_advantages:
        kept = batch.advantages.nonzero()[:, 0]
        return batch.select(kept) if len(kept) else None
    return batch


def split_batch(batch: TokenBatch, max_tokens: int, *, padded: bool = False) -> list[TokenBatch]:
    """Micro-batches whose losses add up to the batch's.

    Args:
        batch: the step's rows.
        max_tokens: what one forward may hold (but one row always fits): distinct tokens, or
            on the padded road positions, padding included.
        padded: True for the padded road.
    """
    if padded:
        rows = max(1, max_tokens // batch.input_ids.shape[1])
        return [batch.select(part) for part in torch.arange(len(batch)).split(rows)]
    return [batch.select(part) for part in split_rows(batch.rows(), max_tokens)]
