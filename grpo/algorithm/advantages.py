"""Group-relative advantages: how much better an episode is than the others of its group.

Every function takes rewards [N] and group ids [N]; equal ids mean the same task from the same
start. A group has two or more episodes, in any order.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from grpo.algorithm.choices import Baseline, Scale


def group_advantages(
    rewards: Tensor,
    group_ids: Tensor,
    *,
    scale: Scale = "group",
    baseline: Baseline = "mean",
    eps: float = 1e-4,
) -> Tensor:
    r"""Subtract each group's baseline from its rewards and divide by a standard deviation.

    $$A_i = \frac{r_i - b_i}{\sigma_i + \epsilon}$$

    Baselines $b_i$ of a group of G rewards:

    - "mean": the group's mean, $r_i$ included (GRPO, arXiv 2402.03300).
    - "leave_one_out": the mean of the other G - 1 rewards (RLOO, arXiv 2402.14740), which is
      unbiased; the difference is G / (G - 1) times that of "mean".

    Scales $\sigma_i$; standard deviations divide by n - 1 (Bessel's correction), as
    `torch.std` and TRL do:

    - "group": the standard deviation of the group's rewards (GRPO).
    - "batch": the standard deviation of all N rewards (Lite PPO, arXiv 2508.08221, and TRL's
      `scale_rewards="batch"`; REINFORCE++, arXiv 2501.03262, is similar but takes the standard
      deviation of the centred rewards).
    - "none": no division (Dr. GRPO, arXiv 2503.20783: dividing favours tasks that are nearly
      always or nearly never solved).

    A group whose rewards are all equal has advantages of exactly 0.

    Args:
        rewards: [N], one finite reward per episode.
        group_ids: [N], integers; equal ids form a group.
        scale: the divisor of the centred rewards.
        baseline: the baseline to subtract from the rewards.
        eps: added to the standard deviation; the default is TRL's.

    Returns:
        [N], in the dtype of `rewards`.

    Raises:
        ValueError: a shape, dtype, name or `eps` is wrong, a reward is not finite, or a group has
            a single member, for which there is no baseline.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale must be one of {get_args(Scale)}, got {scale!r}")
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline must be one of {get_args(Baseline)}, got {baseline!r}")
    if eps <= 0:
        raise ValueError(f"eps must be positive, got {eps}")
    lowest, _, index, sizes = _group(rewards, group_ids)

    def group_mean(values: Tensor) -> Tensor:
        return torch.zeros_like(lowest).index_add(0, index, values) / sizes

    # The mean of 0.1, 0.1, 0.1 is not 0.1 in floating point, and a rounding error divided by a tiny
    # deviation is a large advantage. Relative to the group's lowest reward, equal rewards are 0.
    above = rewards - lowest[index]
    centred = above - group_mean(above)[index]
    size = sizes[index]
    advantages = centred * size / (size - 1) if baseline == "leave_one_out" else centred
    if scale == "none":
        return advantages
    if scale == "batch":
        return advantages / (rewards.std(correction=1) + eps)
    variance = group_mean(centred.square()) * sizes / (sizes - 1)
    return advantages / (variance.sqrt()[index] + eps)


def zero_std_fraction(rewards: Tensor, group_ids: Tensor) -> float:
    """Compute the fraction of groups whose rewards are all equal, so that no advantage is left.

    Args:
        rewards: [N], one finite reward per episode.
        group_ids: [N], integers; equal ids form a group.

    Returns:
        A number from 0 to 1, logged as `frac_reward_zero_std`.

    Raises:
        ValueError: as in `group_advantages`.
    """
    lowest, highest, _, _ = _group(rewards, group_ids)
    return (lowest == highest).double().mean().item()


def _group(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return lowest and highest reward [K], group index of each reward [N], and sizes [K]."""
    if rewards.ndim != 1 or rewards.numel() == 0:
        raise ValueError(f"rewards must be [N] with N > 0, got {list(rewards.shape)}")
    if not rewards.is_floating_point():
        raise ValueError(f"rewards must be floating point, got {rewards.dtype}")
    if group_ids.shape != rewards.shape:
        expected = list(rewards.shape)
        raise ValueError(f"group_ids must be [N]={expected}, got {list(group_ids.shape)}")
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ValueError(f"group_ids must be integers, got {group_ids.dtype}")
    if not rewards.isfinite().all():
        where = (~rewards.isfinite()).nonzero().flatten().tolist()
        raise ValueError(f"rewards must be finite, got {rewards[where].tolist()} at {where}")
    ids, index, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if (sizes < 2).any():
        alone = ids[sizes < 2].tolist()
        raise ValueError(f"a group must have at least 2 rewards, got 1 in group {alone}")
    empty = rewards.new_zeros(len(ids))
    lowest = empty.scatter_reduce(0, index, rewards, "amin", include_self=False)
    highest = empty.scatter_reduce(0, index, rewards, "amax", include_self=False)
    return lowest, highest, index, sizes
