r"""Policy-gradient losses as pure functions of log-probabilities.

Tensors are [N, T]: a row is the completion of one turn and column t describes token t. A loss is
the sum of per-token values times `token_weights`, so the losses of micro-batches add up to the
loss of the batch, however it is split. $\pi$ is the policy being trained, $\pi_{old}$ the one that
sampled the tokens, $\pi_{ref}$ the reference; $r = \pi / \pi_{old}$ is the ratio, $A$ the
advantage. All log-probabilities are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import Tensor

from grpo.algorithm.choices import WITHOUT_DELTA, Aggregation, Bound, KLKind, Level, Loss


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: KLKind, old_logprobs: Tensor | None = None
) -> Tensor:
    r"""Estimate the KL divergence from the reference policy at each sampled token.

    With $d = \log\pi_{ref} - \log\pi$ (http://joschu.net/blog/kl-approx.html):

    $$k_1 = -d, \quad k_2 = d^2 / 2, \quad k_3 = e^d - d - 1, \quad unbiased = r\,k_3$$

    Expected value and gradient for tokens drawn from $\pi$ (on-policy) or from $\pi_{old}$
    (off-policy). In a loss only the gradient matters (arXiv 2510.01555):

    - "k1": the value is unbiased on-policy, but its gradient has expectation 0 there: it is noise
      that does not depend on the reference. Off-policy it is that of $-KL(\pi_{old}\|\pi)$.
    - "k2": the value is biased. The gradient is that of $KL(\pi\|\pi_{ref})$ on-policy and of
      $E_{old}[d^2] / 2$ off-policy.
    - "k3": the value is unbiased on-policy, never negative and has low variance, but the gradient
      is that of the reverse, $KL(\pi_{ref}\|\pi)$. Off-policy it is
      $E_{old}[(1 - e^d) \nabla\log\pi]$, not the gradient of a divergence.
    - "unbiased": value and gradient are those of $KL(\pi\|\pi_{ref})$, on-policy and off-policy
      (DeepSeek-V3.2, arXiv 2512.02556). The gradient through r matters even where r is 1.

    Args:
        logprobs: log-probabilities of the sampled tokens, of any shape.
        ref_logprobs: the reference's, of the same shape.
        kind: the estimator.
        old_logprobs: those of $\pi_{old}$, used by "unbiased" only; None (on-policy) means
            `logprobs.detach()`.

    Returns:
        The estimates in nats, in the shape of `logprobs`.

    Raises:
        ValueError: a shape or the kind is wrong.
    """
    _check_choice("kind", kind, KLKind)
    _check_shape("ref_logprobs", ref_logprobs, logprobs.shape)
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return d.square() / 2
    k3 = d.expm1() - d  # exp(d) - 1 would lose small differences
    if kind == "k3":
        return k3
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs
    _check_shape("old_logprobs", old_logprobs, logprobs.shape)
    return (logprobs - old_logprobs).exp() * k3


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: Level) -> Tensor:
    r"""Compute the log of the ratio between the policy and the one that sampled.

    Token level (GRPO, arXiv 2402.03300) and sequence level (GSPO, arXiv 2507.18071):

    $$\log r_t = \log\pi_t - \log\pi_{old,t}, \qquad \log s = \frac{1}{|y|}\sum_t \log r_t$$

    Args:
        logprobs: [N, T].
        old_logprobs: [N, T].
        mask: [N, T], bool, True at sampled tokens; other positions may hold anything, even NaN.
        level: "token", or "sequence" for the row's mean at each of its tokens.

    Returns:
        [N, T], 0 where the mask is False.

    Raises:
        ValueError: a shape, the mask's dtype or the level is wrong.
    """
    _check_choice("level", level, Level)
    _check_mask(mask, logprobs.shape)
    _check_shape("old_logprobs", old_logprobs, logprobs.shape)
    difference = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)
    if level == "token":
        return difference
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(mask, difference.sum(dim=1, keepdim=True) / lengths, 0.0)


def clipped_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    epsilon_low: float,
    epsilon_high: float,
    delta: float | None = None,
) -> Tensor:
    r"""Compute PPO's clipped loss, with separate bounds and an optional dual clip.

    $$-\min(\min(r, \delta)\,A,\ \mathrm{clip}(r, 1-\epsilon_{low}, 1+\epsilon_{high})\,A)$$

    PPO (arXiv 1707.06347); DAPO's clip-higher is $\epsilon_{high} > \epsilon_{low}$
    (arXiv 2503.14476). For a negative advantage the loss grows with the ratio without bound;
    $\delta$ bounds it (dual clip, arXiv 1912.09729; TRL's `delta`).

    Args:
        log_ratio: [N, T], from `log_ratio`.
        advantages: [N] or [N, T].
        epsilon_low: the ratio is clipped below 1 - epsilon_low where A < 0.
        epsilon_high: the ratio is clipped above 1 + epsilon_high where A > 0.
        delta: the ratio is clipped above delta where A < 0; greater than 1 + epsilon_high.

    Returns:
        [N, T], the loss of each token.

    Raises:
        ValueError: a shape or a bound is wrong.
    """
    advantages = _per_token(advantages, log_ratio.shape)
    if epsilon_low < 0 or epsilon_high < 0:
        raise ValueError(f"epsilons must not be negative, got {epsilon_low} and {epsilon_high}")
    if delta is not None and delta <= 1 + epsilon_high:
        raise ValueError(f"delta must be above 1 + epsilon_high={1 + epsilon_high}, got {delta}")
    # Above its clip the ratio has a gradient of 0, which times an overflow of exp is NaN, and so is
    # an advantage of 0 times infinity: the exponent ends just above the clip, where there is one.
    unclipped = math.inf if delta is None else delta
    clip = torch.where(advantages < 0, unclipped, 1 + epsilon_high)
    ratio = torch.minimum(log_ratio, clip.log().to(log_ratio.dtype) + 1).exp()
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def cispo(log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, epsilon_high: float) -> Tensor:
    r"""Compute CISPO's loss: REINFORCE under a capped importance weight that has no gradient.

    $$-\mathrm{sg}[\min(r, 1 + \epsilon_{high})]\ A\ \log\pi$$

    MiniMax-M1 (arXiv 2506.13585), without a lower bound, as used there. Clipped tokens keep a
    gradient, too. TRL's `epsilon_high` is the cap itself: 5.0 there is 4.0 here.

    Args:
        log_ratio: [N, T], from `log_ratio`.
        logprobs: [N, T].
        advantages: [N] or [N, T].
        epsilon_high: the weight is at most 1 + epsilon_high.

    Returns:
        [N, T], the loss of each token; only its gradient is meaningful.

    Raises:
        ValueError: a shape or the bound is wrong.
    """
    _check_shape("logprobs", logprobs, log_ratio.shape)
    advantages = _per_token(advantages, log_ratio.shape)
    if epsilon_high < 0:
        raise ValueError(f"epsilon_high must not be negative, got {epsilon_high}")
    return -log_ratio.detach().exp().clamp(max=1 + epsilon_high) * advantages * logprobs


def importance_weights(
    logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Level = "token",
    bound: Bound = "cap",
    cap: float = 2.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Compute bounded importance weights between the policy and the generator that sampled.

    A generator such as vLLM computes in another order or precision, or with an older policy, so it
    samples from a distribution $\mu$ that is not $\pi$. Its samples are corrected by the weights

    $$w_t = \pi_t / \mu_t, \qquad w = \prod_t \pi_t / \mu_t$$

    at token or at sequence level (the row's product at each of its tokens). A bound keeps the
    variance finite. "cap": $\min(w, c)$, truncated importance sampling (Ionides 2008; for rollouts
    of another engine Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy
    RL training"). "mask": w where $1/c \le w \le c$ and 0 elsewhere (IcePop, Ling Team 2025; TRL's
    "mask" has the upper bound only), for differences so large that they are an error of the
    generator and not noise.

    Args:
        logprobs: [N, T], of the policy that is supposed to have sampled.
        sampling_logprobs: [N, T], as the generator reported them.
        mask: [N, T], bool, True at sampled tokens; other positions may hold anything, even NaN.
        level: "token" or "sequence".
        bound: "cap" or "mask".
        cap: c, greater than 1.

    Returns:
        [N, T] without a gradient, 1 where the mask is False; and sums over the tokens, as in
        `policy_loss`: `sampling/is_ratio`, of w before the bound, and `sampling/is_bounded`, the
        number of tokens that the bound changed.

    Raises:
        ValueError: a shape, dtype, name or the cap is wrong.
    """
    _check_choice("level", level, Level)
    _check_choice("bound", bound, Bound)
    _check_mask(mask, logprobs.shape)
    _check_shape("sampling_logprobs", sampling_logprobs, logprobs.shape)
    if cap <= 1:
        raise ValueError(f"cap must be above 1, got {cap}")
    gap = torch.where(mask, logprobs.detach() - sampling_logprobs, 0.0)
    if level == "sequence":
        gap = torch.where(mask, gap.sum(dim=1, keepdim=True), 0.0)
    weights = gap.exp()
    outside = weights > cap
    if bound == "mask":
        outside |= weights < 1 / cap
    bounded = torch.where(outside, cap if bound == "cap" else 0.0, weights)
    sums = {"sampling/is_ratio": weights, "sampling/is_bounded": outside}
    stats = {name: torch.where(mask, x, 0).sum(dtype=gap.dtype) for name, x in sums.items()}
    return bounded, stats


def token_weights(
    mask: Tensor,
    aggregation: Aggregation,
    *,
    max_completion_length: int | None = None,
    episode_ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Compute the weight of each token in the batch's loss, which decides how tokens are averaged.

    With U units (rows, or episodes where `episode_ids` is given) of $n_u$ tokens each:

    - "grpo": $1 / (U n_u)$, the mean over units of the mean over tokens (arXiv 2402.03300);
      tokens of long units count less.
    - "dapo", "bnpo": $1 / \sum_u n_u$, the mean over all tokens (DAPO, arXiv 2503.14476). In the
      literature BNPO divides by the tokens of a micro-batch and DAPO by those of the batch.
      Weights are computed once for the batch here, so the two are the same.
    - "dr_grpo": $1 / (U L)$ with the constant L = `max_completion_length` (arXiv 2503.20783);
      no weight depends on a length.

    Units without a token have weight 0 and are not counted in U.

    Args:
        mask: [N, T], bool, True at sampled tokens, of the whole batch.
        aggregation: how to average.
        max_completion_length: L, the token budget of one unit, used by "dr_grpo" only.
        episode_ids: [N], integers; rows with equal ids are one unit. None: each row is a unit.
        dtype: dtype of the result.

    Returns:
        [N, T], 0 where the mask is False.

    Raises:
        ValueError: a shape, dtype or name is wrong, L is missing, or no token is sampled.
    """
    _check_choice("aggregation", aggregation, Aggregation)
    _check_mask(mask, mask.shape)
    units = torch.arange(len(mask), device=mask.device)
    if episode_ids is not None:
        _check_shape("episode_ids", episode_ids, mask.shape[:1])
        units = torch.unique(episode_ids, return_inverse=True)[1]
    tokens = torch.zeros_like(units).index_add(0, units, mask.sum(dim=1))
    count = (tokens > 0).sum()
    if count == 0:
        raise ValueError(f"mask must be True somewhere, got {list(mask.shape)} of False")
    if aggregation == "grpo":
        denominator = count * tokens[units].clamp(min=1)
    elif aggregation == "dr_grpo":
        if max_completion_length is None or max_completion_length < 1:
            raise ValueError(
                f"dr_grpo needs a positive max_completion_length, got {max_completion_length}"
            )
        denominator = (count * max_completion_length).expand(len(mask))
    else:
        denominator = tokens.sum().expand(len(mask))
    return torch.where(mask, denominator.to(dtype).reciprocal().unsqueeze(1), 0.0)


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    importance_weights: Tensor | None = None,
    loss: Loss = "grpo",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    kl: KLKind = "k3",
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Compute the loss of a batch or micro-batch, and sums for its metrics.

    $$\sum_{n,t} w_{nt} \left(\rho_{nt}\,\ell_{nt} + \beta\,\mathrm{kl}_{nt}\right)$$

    with $\ell$ the clipped surrogate ("grpo", and "gspo" at sequence level) or "cispo". Only
    `logprobs` receives a gradient. Values at masked positions, even NaN, change neither the loss
    nor the gradient.

    Args:
        logprobs: [N, T], of the policy being trained.
        advantages: [N] or [N, T].
        mask: [N, T], bool, True at sampled tokens.
        weights: [N, T], w, from `token_weights` of the whole batch.
        old_logprobs: [N, T], of the policy that sampled; None means on-policy: the ratio is 1
            and has a gradient.
        ref_logprobs: [N, T], of the reference; needed if beta is not 0.
        importance_weights: [N, T], rho, e.g. from `importance_weights`; None means 1. The KL term
            is not multiplied by them.
        loss: "grpo", "gspo" or "cispo"; GSPO needs far smaller epsilons (its paper has 3e-4, 4e-4).
        epsilon_low: see `clipped_surrogate`; "cispo" has no lower bound.
        epsilon_high: see `clipped_surrogate` and `cispo`.
        delta: see `clipped_surrogate`; not with "cispo".
        beta: weight of the KL term.
        kl: see `kl_estimate`; "unbiased" uses the ratio per token, also with "gspo".

    Returns:
        The loss, a scalar, and detached scalars: `tokens`, the number of sampled tokens, and
        sums over them for `mean_stats`: `ratio`; `clip_ratio/low` and `clip_ratio/high`, the
        numbers of tokens whose ratio was clipped; `approx_kl`, k3 of $KL(\pi_{old}\|\pi)$; and,
        with a reference, `kl`, which is always k3 of $KL(\pi\|\pi_{ref})$, so that runs can be
        compared.

    Raises:
        ValueError: a shape, dtype or name is wrong, or arguments contradict each other.
    """
    _check_choice("loss", loss, Loss)
    _check_choice("kl", kl, KLKind)
    _check_mask(mask, logprobs.shape)
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    if beta != 0 and ref_logprobs is None:
        raise ValueError(f"beta={beta} needs ref_logprobs, got None")
    if loss in WITHOUT_DELTA and delta is not None:
        raise ValueError(f"delta does not apply to {loss}, got {delta}")

    # 0 times NaN is NaN, in the backward pass too, so positions that were not sampled are replaced
    # before any arithmetic and not multiplied by 0 after it.
    def sampled(name: str, values: Tensor) -> Tensor:
        _check_shape(name, values, logprobs.shape)
        return torch.where(mask, values, 0.0)

    old_logprobs = logprobs if old_logprobs is None else old_logprobs
    old_logprobs = sampled("old_logprobs", old_logprobs).detach()
    logprobs = sampled("logprobs", logprobs)
    advantages = sampled("advantages", _per_token(advantages, logprobs.shape)).detach()
    weights = sampled("weights", weights).detach()

    log_r = log_ratio(logprobs, old_logprobs, mask, "sequence" if loss == "gspo" else "token")
    if loss == "cispo":
        per_token_loss = cispo(log_r, logprobs, advantages, epsilon_high)
    else:
        per_token_loss = clipped_surrogate(log_r, advantages, epsilon_low, epsilon_high, delta)
    if importance_weights is not None:
        rho = sampled("importance_weights", importance_weights).detach()
        per_token_loss = per_token_loss * rho

    ratio = log_r.detach().exp()
    low, high = ratio < 1 - epsilon_low, ratio > 1 + epsilon_high
    per_token = {
        "tokens": mask,
        "ratio": ratio,
        "clip_ratio/low": low & (advantages < 0) & (loss != "cispo"),
        "clip_ratio/high": high & ((advantages > 0) | (loss == "cispo")),
        "approx_kl": kl_estimate(old_logprobs, logprobs.detach(), "k3"),
    }
    if ref_logprobs is not None:
        ref_logprobs = sampled("ref_logprobs", ref_logprobs).detach()
        per_token["kl"] = kl_estimate(logprobs.detach(), ref_logprobs, "k3")
        if beta != 0:
            per_token_kl = kl_estimate(logprobs, ref_logprobs, kl, old_logprobs)
            per_token_loss = per_token_loss + beta * per_token_kl

    stats = {name: torch.where(mask, x, 0).sum(dtype=ratio.dtype) for name, x in per_token.items()}
    return (per_token_loss * weights).sum(), stats


def mean_stats(stats: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Add up the sums that `policy_loss` returned for micro-batches and divide by their tokens.

    Args:
        stats: one dict per micro-batch, all with the same names.

    Returns:
        Means over all sampled tokens, and `tokens`, the number of tokens.

    Raises:
        ValueError: there are no stats, no tokens, or the names differ.
    """
    stats = list(stats)
    if not stats or any(s.keys() != stats[0].keys() for s in stats):
        raise ValueError(f"stats must have the same names, got {[sorted(s) for s in stats]}")
    sums = {name: sum(s[name].item() for s in stats) for name in stats[0]}
    tokens = sums.pop("tokens")
    if tokens == 0:
        raise ValueError("stats must hold at least one token, got 0")
    return {"tokens": tokens, **{name: total / tokens for name, total in sums.items()}}


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}")


def _check_shape(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        axes = {1: "[N]=", 2: "[N, T]="}.get(len(shape), "")
        raise ValueError(f"{name} must be {axes}{list(shape)}, got {list(tensor.shape)}")


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    if len(shape) != 2:
        raise ValueError(f"log-probabilities and mask must be [N, T], got {list(shape)}")
    _check_shape("mask", mask, shape)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool, got {mask.dtype}")


def _per_token(advantages: Tensor, shape: torch.Size) -> Tensor:
    if advantages.shape == shape:
        return advantages
    if advantages.shape != shape[:1]:
        expected = f"[N]={list(shape[:1])} or [N, T]={list(shape)}"
        raise ValueError(f"advantages must be {expected}, got {list(advantages.shape)}")
    return advantages.unsqueeze(1).expand(shape)
