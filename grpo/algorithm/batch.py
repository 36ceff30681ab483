"""Groups of episodes -> the tensors of advantages and loss.

Token weights are decided here, once for the whole step: what comes after may cut the batch
anywhere, and the gradient stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpo.algorithm.choices import Aggregation
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.algorithm.losses import token_weights
from grpo.tree.token_tree import in_order, split_rows
from grpo.types import Completion, Group, TokenBatch

EPISODE = CreditRule("episode")
"""Every turn has its episode's advantage."""


class RewardTensors(NamedTuple):
    """The rewards of E episodes of up to K turns: what advantages are computed from.

    Attributes:
        rewards: [E] float32, one per episode.
        group_ids: [E] long; equal ids form a group.
        turn_rewards: [E, K] float64; 0 past an episode's end.
        states: [E, K] long; equal ids mean equal pages, -1 past an episode's end.
    """

    rewards: Tensor
    group_ids: Tensor
    turn_rewards: Tensor
    states: Tensor


def reward_tensors(groups: Sequence[Group]) -> RewardTensors:
    """Lay out the rewards of the groups' episodes, in their order."""
    episodes = [episode for group in groups for episode in group.episodes]
    page_ids: dict[str, int] = {}
    states, turn_rewards = [], []
    for episode in episodes:
        pages = [page_ids.setdefault(turn.state, len(page_ids)) for turn in episode.turns]
        states.append(torch.tensor(pages))
        rewards = [turn.reward for turn in episode.turns]
        turn_rewards.append(torch.tensor(rewards, dtype=torch.float64))
    return RewardTensors(
        torch.tensor([episode.reward for episode in episodes]),
        torch.tensor([g for g, group in enumerate(groups) for _ in group.episodes]),
        pad_sequence(turn_rewards, batch_first=True),
        pad_sequence(states, batch_first=True, padding_value=-1),
    )


def has_learning_signal(group: Group, credit: CreditRule = EPISODE) -> bool:
    """Tell whether any turn of a group has an advantage other than 0."""
    return bool(turn_advantages(*reward_tensors([group]), credit, scale="none").any())


def make_batch(
    groups: Sequence[Group],
    advantages: Tensor,
    *,
    aggregation: Aggregation = "dapo",
    max_completion_length: int | None = None,
    drop_zero_advantages: bool = False,
    own: Sequence[bool] | None = None,
) -> TokenBatch | None:
    """Lay out a step's turns as rows, each with its advantage and its token weights.

    Rows without an advantage may be left out; the token weights are computed before that, so the
    gradient of the others stays as it is.

    Args:
        groups: the step's groups, of all ranks.
        advantages: [E, K] of their E episodes' turns, as `turn_advantages` returns them.
        aggregation: "grpo", "bnpo", "dr_grpo" or "dapo" (see `token_weights`).
        max_completion_length: the constant of "dr_grpo".
        drop_zero_advantages: leave out rows whose advantage is 0. Right where the loss is a
            multiple of the advantage, wrong with a KL penalty.
        own: one per group, True if its turns become rows here; None for all. The others count
            for the averages alone, and their prompts are not looked at.

    Returns:
        The batch, or None if no row of any rank is left.
    """
    episodes = [(g, episode) for g, group in enumerate(groups) for episode in group.episodes]
    turns = [(e, turn) for e, (_, episode) in enumerate(episodes) for turn in episode.turns]
    of_turns = torch.cat(
        [row[: len(e.turns)] for row, (_, e) in zip(advantages, episodes, strict=True)]
    )
    if drop_zero_advantages and not of_turns.any():
        return None
    lengths = torch.tensor([len(turn.completion.completion_ids) for _, turn in turns])
    # Token weights depend on the completions' lengths alone, and are equal within a row.
    weights = token_weights(
        torch.arange(int(lengths.max())) < lengths[:, None],
        aggregation,
        max_completion_length=max_completion_length,
        episode_ids=torch.tensor([e for e, _ in turns]),
    ).amax(1)

    here = torch.tensor([own is None or own[episodes[e][0]] for e, _ in turns])
    if drop_zero_advantages:
        here &= of_turns != 0
    kept = here.nonzero()[:, 0].tolist()
    completions = [turns[n][1].completion for n in kept]
    return rows_from_completions(completions, of_turns[kept], weights[kept])


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
    weights = torch.zeros(n) if token_weights is None else token_weights
    return TokenBatch(
        input_ids=input_ids,
        token_mask=token_mask,
        completion_mask=completion_mask,
        sampling_logprobs=sampling_logprobs,
        advantages=torch.zeros(n) if advantages is None else advantages,
        token_weights=weights[:, None] * completion_mask,
        policy_versions=torch.tensor([c.policy_version for c in completions], dtype=torch.long),
        is_mixed=torch.tensor([c.is_mixed for c in completions], dtype=torch.bool),
    )


def sort_batch(batch: TokenBatch, *, padded: bool = False) -> TokenBatch:
    """Return the rows in the order of their tokens, so that shared prefixes stand together.

    `split_batch` cuts a sorted batch into slices: the results of its parts, concatenated, are
    the batch's, wherever the cuts fall.

    Args:
        batch: the step's rows.
        padded: True for the forward pass over padded rows: the longest rows come first, so that
            those of a micro-batch need little padding.
    """
    arrays = [np.asarray(row) for row in batch.rows()]
    order = [n for n, _, _ in in_order(arrays)]
    return batch.select(sorted(order, key=lambda n: -len(arrays[n])) if padded else order)


def split_batch(batch: TokenBatch, max_tokens: int, *, padded: bool = False) -> list[TokenBatch]:
    """Cut a batch into micro-batches whose losses add up to the batch's.

    Args:
        batch: the step's rows.
        max_tokens: budget of one forward pass (a single row always fits): distinct tokens, or
            with padded rows positions, padding up to the longest of the rows included.
        padded: True for the forward pass over padded rows.
    """
    if not padded:
        return [batch.select(part) for part in split_rows(batch.rows(), max_tokens)]
    parts: list[list[int]] = []
    longest = 0
    for n, length in enumerate(batch.token_mask.sum(1).tolist()):
        longest = max(longest, length)
        if not parts or (len(parts[-1]) + 1) * longest > max_tokens:
            parts.append([])
            longest = length
        parts[-1].append(n)
    return [batch.select(part) for part in parts]
