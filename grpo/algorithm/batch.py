"""Groups of episodes -> the tensors of the loss.

Here it is decided once, for the whole step, how tokens are averaged: what comes after may
cut the batch anywhere and the gradient stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpo.algorithm.advantages import Baseline, Scale
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.algorithm.losses import Aggregation, token_weights
from grpo.tree.token_tree import in_order, split_rows
from grpo.types import Completion, Group, TokenBatch

EPISODE = CreditRule("episode")
"""Every turn has its episode's advantage."""


def make_batch(
    groups: Sequence[Group],
    *,
    scale_rewards: Scale = "group",
    baseline: Baseline = "mean",
    credit: CreditRule = EPISODE,
    aggregation: Aggregation = "dapo",
    max_completion_length: int | None = None,
    drop_zero_advantages: bool = False,
    own: Sequence[bool] | None = None,
) -> TokenBatch | None:
    """Lay out a step's turns as rows.

    Every row carries its turn's advantage. Rows that teach nothing may be left out; the token
    weights are made before that, so the others' gradient stays as it is.

    Args:
        groups: the step's groups, of all ranks.
        scale_rewards: "group", "batch" or "none" (see `group_advantages`).
        baseline: "mean" or "leave_one_out".
        credit: how turns get their advantages (see `turn_advantages`).
        aggregation: "grpo", "bnpo", "dr_grpo" or "dapo" (see `token_weights`).
        max_completion_length: the constant of "dr_grpo".
        drop_zero_advantages: leave out rows of advantage 0. Right where the loss is a
            multiple of the advantage, wrong with a KL penalty.
        own: one a group, whether it becomes rows here; None: all do. The others are there for
            the averages, and their prompts are not looked at.

    Returns:
        The batch, or None if no row of any rank is left.
    """
    episodes = [(g, episode) for g, group in enumerate(groups) for episode in group.episodes]
    advantages = _advantages(groups, credit, scale_rewards, baseline)
    if drop_zero_advantages and not advantages.any():
        return None
    turns = [(e, turn) for e, (_, episode) in enumerate(episodes) for turn in episode.turns]
    episode_of_turn = torch.tensor([e for e, _ in turns])
    lengths = torch.tensor([len(turn.completion.completion_ids) for _, turn in turns])
    # How tokens are averaged depends on the answers' lengths alone, and is one weight a row.
    weights = token_weights(
        torch.arange(int(lengths.max())) < lengths[:, None],
        aggregation,
        max_completion_length=max_completion_length,
        episode_ids=episode_of_turn,
    ).amax(1)

    here = torch.tensor([own is None or own[episodes[e][0]] for e, _ in turns])
    if drop_zero_advantages:
        here &= advantages != 0
    kept = here.nonzero()[:, 0].tolist()
    completions = [turns[n][1].completion for n in kept]
    return rows_from_completions(completions, advantages[kept], weights[kept])


def rows_from_completions(
    completions: Sequence[Completion],
    advantages: Tensor | None = None,
    token_weights: Tensor | None = None,
) -> TokenBatch:
    """Lay completions out as rows of prompt, completion and padding, in the order given.

    Args:
        completions: N of them, of any lengths.
        advantages: [N] float32, one per row; None for zeros.
        token_weights: [N] float32, the weight of each token of the row; None for zeros.

    Returns:
        N rows, on the CPU.
    """
    n = len(completions)
    width = max((len(c.prompt_ids) + len(c.completion_ids) for c in completions), default=0)
    input_ids = torch.zeros(n, width, dtype=torch.long)
    token_mask = torch.zeros(n, width, dtype=torch.bool)
    completion_mask = torch.zeros(n, width, dtype=torch.bool)
    sampling_logprobs = torch.zeros(n, width)
    for i, completion in enumerate(completions):
        start = len(completion.prompt_ids)
        stop = start + len(completion.completion_ids)
        input_ids[i, :stop] = torch.tensor(completion.prompt_ids + completion.completion_ids)
        token_mask[i, :stop] = True
        completion_mask[i, start:stop] = True
        sampling_logprobs[i, start:stop] = torch.tensor(completion.logprobs)
    zeros = torch.zeros(n)
    return TokenBatch(
        input_ids=input_ids,
        token_mask=token_mask,
        completion_mask=completion_mask,
        sampling_logprobs=sampling_logprobs,
        advantages=zeros if advantages is None else advantages,
        token_weights=(zeros if token_weights is None else token_weights)[:, None]
        * completion_mask,
    )


def has_learning_signal(group: Group, credit: CreditRule = EPISODE) -> bool:
    """Tell whether any turn of a group has an unscaled advantage other than 0."""
    return bool(_advantages([group], credit, "none", "mean").any())


def _advantages(
    groups: Sequence[Group], credit: CreditRule, scale: Scale, baseline: Baseline
) -> Tensor:
    """Advantages [N] of all turns, episode by episode."""
    episodes = [episode for group in groups for episode in group.episodes]
    numbers: dict[str, int] = {}
    states, rewards = [], []
    for episode in episodes:
        pages = [numbers.setdefault(turn.state, len(numbers)) for turn in episode.turns]
        states.append(torch.tensor(pages))
        rewards.append(torch.tensor([turn.reward for turn in episode.turns], dtype=torch.float64))
    padded = pad_sequence(states, batch_first=True, padding_value=-1)
    advantages = turn_advantages(
        torch.tensor([episode.reward for episode in episodes]),
        torch.tensor([g for g, group in enumerate(groups) for _ in group.episodes]),
        pad_sequence(rewards, batch_first=True),
        padded,
        credit,
        scale=scale,
        baseline=baseline,
    )
    return advantages[padded >= 0]


def sort_batch(batch: TokenBatch) -> TokenBatch:
    """The same rows in the order of their tokens: what shares a prefix stands together.

    `split_batch` cuts a sorted batch into slices, so that results of its parts, one behind the
    other, are the batch's, wherever the cuts fall.
    """
    arrays = [np.asarray(row) for row in batch.rows()]
    return batch.select([n for n, _, _ in in_order(arrays)])


def split_batch(batch: TokenBatch, max_tokens: int, *, padded: bool = False) -> list[TokenBatch]:
    """Micro-batches whose losses add up to the batch's.

    Args:
        batch: the step's rows.
        max_tokens: what one forward may hold (but one row always fits): distinct tokens, or
            on the padded road positions, padding included.
        padded: True for the padded road.
    """
    if not len(batch):
        return []
    if padded:
        rows = max(1, max_tokens // batch.input_ids.shape[1])
        return [batch.select(part) for part in torch.arange(len(batch)).split(rows)]
    return [batch.select(part) for part in split_rows(batch.rows(), max_tokens)]
