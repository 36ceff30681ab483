r"""Credit assignment over turns: which of an episode's turns earned its reward.

Tensors are [E, K]: a row is one episode and column k describes its turn k. Episodes have any
number of turns; past the last turn rewards are 0 and states negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from grpo.algorithm.advantages import group_advantages
from grpo.algorithm.choices import Baseline, Credit, Scale


@dataclass(frozen=True)
class CreditRule:
    r"""A rule for the advantages of turns; `turn_advantages` has the formulas.

    Attributes:
        credit: "episode", "discounted" or "steps".
        discount: $\gamma$ of later rewards, above 0 and at most 1; not used by "episode".
        step_weight: $\omega$ of the comparison at equal states, used by "steps" only.

    Raises:
        ValueError: a name or a number is wrong.
    """

    credit: Credit = "episode"
    discount: float = 0.95
    step_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.credit not in get_args(Credit):
            raise ValueError(f"credit must be one of {get_args(Credit)}, got {self.credit!r}")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must be above 0 and at most 1, got {self.discount}")
        if not self.step_weight >= 0:
            raise ValueError(f"step_weight must not be negative, got {self.step_weight}")


def turn_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    turn_rewards: Tensor,
    states: Tensor,
    rule: CreditRule,
    *,
    scale: Scale = "group",
    baseline: Baseline = "mean",
) -> Tensor:
    r"""Compute the advantage of each turn by comparing it with turns of the same group.

    With $A(x_i)$ the advantage of $x_i$ among the values that it is compared with (see
    `group_advantages`), $r_i$ the reward of episode i and $R_{ik} = \sum_{j \ge k}
    \gamma^{j-k} r_{ij}$ the return from turn k on:

    - "episode": $A_{ik} = A(r_i)$ among the group's episodes. Every turn has its episode's
      advantage (GRPO, arXiv 2402.03300, outcome supervision).
    - "discounted": $A_{ik} = A(R_{ik})$ among $R_{1k} \dots R_{Gk}$, the returns of the group's
      episodes from turn k on. An episode that has ended has return 0, as in an absorbing state.
      So the baseline depends on the turn's number. The other episodes' returns do not depend on
      what this episode does at turn k or later, hence with scale "none" and "leave_one_out"
      $E[\sum_k A_{ik} \nabla\log\pi_{ik}] = E[\sum_k R_{ik} \nabla\log\pi_{ik}]$, which at
      $\gamma = 1$ is the gradient of the expected reward; "mean" gives (G - 1) / G of it.
      A $\gamma$ below 1 trades a bias towards early rewards for less variance (arXiv 1506.02438).
      Process supervision (arXiv 2402.03300, 4.1.3) centres each reward and then adds up, so the
      baseline grows with the number of the episode's later turns, which is a bias.
    - "steps": $A_{ik} = A(r_i) + \omega A(R_{ik})$, the second term among the group's turns in
      the same state, 0 where there is no other (GiGPO, arXiv 2505.10978; its $F_{norm}$ is the
      scale "group", or 1 for "none"). Unscaled, the second term's expectation is the policy
      gradient with each state weighted by the probability that other episodes reach it. If an
      episode visits a state twice, each visit is in the baseline of the other, as in the paper.

    At $\gamma = 1$ the first turn's advantage is equal in "discounted" and "episode"; so is every
    turn's if only last turns have rewards and all episodes have the same length. Equal values have
    advantages of exactly 0, but a group of equal rewards may still have unequal returns.

    Args:
        rewards: [E], one finite reward per episode: the sums of `turn_rewards`.
        group_ids: [E], integers; equal ids form a group.
        turn_rewards: [E, K]; returns are rounded to the dtype of `rewards`, which makes most sums
            equal again that were added up in another order.
        states: [E, K], integers; "steps" compares equal ones of a group.
        rule: the rule and its numbers.
        scale: the divisor of the centred values; "batch" takes the standard deviation of all
            values that are compared with others.
        baseline: the baseline to subtract.

    Returns:
        [E, K], in the dtype of `rewards`; 0 past an episode's end.

    Raises:
        ValueError: a shape or dtype is wrong, or as in `group_advantages`.
    """
    compare = partial(group_advantages, scale=scale, baseline=baseline)
    of_episodes = compare(rewards, group_ids)
    if turn_rewards.ndim != 2 or len(turn_rewards) != len(rewards):
        shape = list(turn_rewards.shape)
        raise ValueError(f"turn_rewards must be [E, K]=[{len(rewards)}, K], got {shape}")
    if states.shape != turn_rewards.shape:
        shape = list(turn_rewards.shape)
        raise ValueError(f"states must be [E, K]={shape}, got {list(states.shape)}")
    if states.is_floating_point() or states.dtype == torch.bool:
        raise ValueError(f"states must be integers, got {states.dtype}")
    taken = states >= 0
    everywhere = torch.where(taken, of_episodes[:, None], 0.0)
    if rule.credit == "episode":
        return everywhere

    returns = discounted_returns(turn_rewards, rule.discount).to(rewards.dtype)
    if rule.credit == "discounted":
        columns = torch.arange(states.shape[1], device=states.device)
        ids = _pair_ids(group_ids, columns.expand_as(states))
        compared = torch.isin(ids, ids[taken])  # ended episodes too, up to the group's last turn
    else:
        ids = _pair_ids(group_ids, states)
        compared = taken & (ids.flatten().bincount()[ids] > 1)
    advantages = torch.zeros_like(returns)
    if compared.any():
        advantages[compared] = compare(returns[compared], ids[compared])
    if rule.credit == "discounted":
        return torch.where(taken, advantages, 0.0)
    return everywhere + rule.step_weight * advantages


def discounted_returns(rewards: Tensor, discount: float) -> Tensor:
    r"""Compute the discounted sum of rewards from each turn on: $R_k = r_k + \gamma R_{k+1}$.

    Args:
        rewards: [E, K], of the turns; 0 past an episode's end.
        discount: $\gamma$.

    Returns:
        [E, K], 0 past an episode's end.
    """
    returns = rewards.clone()
    for k in reversed(range(rewards.shape[1] - 1)):
        returns[:, k] += discount * returns[:, k + 1]
    return returns


def _pair_ids(group_ids: Tensor, others: Tensor) -> Tensor:
    """Number the pairs of an episode's group [E] and another id [E, K] from 0: [E, K]."""
    pairs = torch.stack([group_ids[:, None].expand_as(others), others], dim=-1)
    index: Tensor = torch.unique(pairs.flatten(0, 1), dim=0, return_inverse=True)[1]
    return index.view_as(others)
