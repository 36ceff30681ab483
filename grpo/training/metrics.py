"""The metrics of a training step, each defined once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from grpo.algorithm.advantages import zero_std_fraction
from grpo.types import Group

METRICS = {
    "reward": "mean reward of the step's episodes",
    "completion_length": "mean number of sampled tokens per completion, end token included",
    "entropy": "mean over sampled tokens of -log p: an unbiased estimate of the entropy, nats",
    "success": "share of episodes that solved their task",
    "success/<task>": "the same for each task",
    "reward_std": "mean over groups of the rewards' standard deviation (n - 1)",
    "frac_reward_zero_std": "share of groups whose episodes' rewards are all equal",
    "invalid_action_rate": "share of completions that were not an action the page allows",
    "episode_length": "mean number of completions per episode",
    "truncated_rate": "share of completions cut off at max_new_tokens",
    "page_cut_rate": "share of prompts whose page was cut to fit the model",
    "shared_page_rate": "share of turns on a page that their group met more than once: see credit",
    "groups_replaced": "groups without an advantage that the update replaced by others (DAPO)",
    "loss": "loss of the update, mean over its passes",
    "grad_norm": "norm of the trained weights' gradient before clipping, mean over the passes",
    "learning_rate": "learning rate of the update",
    "kl": "k3 estimate of KL(policy || reference), mean over sampled tokens, nats",
    "update/entropy": "exact entropy of the distributions that the update's tokens came from, nats",
    "approx_kl": "k3 estimate of KL(old policy || policy), mean over sampled tokens, nats",
    "ratio": "mean of policy / old policy over sampled tokens",
    "clip_ratio/low": "share of sampled tokens clipped at 1 - epsilon_low",
    "clip_ratio/high": "share of sampled tokens clipped at 1 + epsilon_high",
    "sampling/logp_difference": "mean |log p(policy that sampled) - log p(generator)| over the "
    "sampled tokens, the former as the trainer computes it, nats",
    "sampling/unmeasured": "share of sampled tokens left out of it: no kept policy sampled them",
    "sampling/logp_difference/rank<n>": "sampling/logp_difference of each rank, with several ranks",
    "sampling/version/rank<n>": "mean version of the policies that sampled a rank's rows",
    "sampling/is_ratio": "mean of p(trainer) / p(generator), or of its product per completion",
    "sampling/is_bounded": "share of sampled tokens whose weight was capped or masked",
    "sampling/staleness": "mean number of updates that the sampling policy lagged behind",
    "env/failures": "env calls that failed (browser, server, network), so far",
    "env/episodes_dropped": "episodes that failed twice, so far",
    "env/groups_dropped": "groups with fewer than two survivors, so far",
    "env/episodes_executed": "resets of environments, those of evaluations included, so far",
    "env/steps_executed": "actions that environments executed, replayed ones included, so far",
    "env/steps_shared": "actions whose result another episode of the group had, so far",
    "env/replay_mismatches": "replayed actions that led to another page, so far",
    "tokens/rows": "tokens of the batch's rows, prompts included",
    "tokens/distinct": "distinct prefixes among them: what the tree computes",
    "update/skipped": "1 if the update was left out (no signal, or a gradient not finite)",
    "seconds/rollout": "wall time of the step's rollouts",
    "seconds/generate": "part of it during which the generator was busy",
    "seconds/env": "part of it during which only environments were waited for",
    "update/memory_halvings": "times that micro-batches were halved for lack of memory, so far",
    "checkpoint/failures": "checkpoints that could not be written, so far",
    "seconds/update": "wall time of the update",
    "seconds/sync": "wall time of giving the generator the policy that the step before has left",
}

IMITATION = {
    "imitation/loss": "mean of -log p over the update's demonstrated tokens, before it, in nats",
    "imitation/held_out_loss": "the same over demonstrations that are not imitated, after it",
    "imitation/held_out_greedy": "share of their actions that greedy decoding repeats, each after "
    "the page and the tokens of the demonstration",
    "imitation/grad_norm": "norm of the gradient before clipping",
    "imitation/learning_rate": "learning rate of the update",
}
"""The metrics of an update of the warm start; those held out are measured now and then."""


def rollout_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """Compute the metrics of a step's episodes (see `METRICS`).

    Args:
        groups: all groups that the step played.
        version: version of the policy that the update starts from.
    """
    episodes = [episode for group in groups for episode in group.episodes]
    turns = [turn for episode in episodes for turn in episode.turns]
    group_ids = torch.tensor([g for g, group in enumerate(groups) for _ in group.episodes])
    numbered = zip(group_ids.tolist(), episodes, strict=True)
    pages = Counter((g, turn.state) for g, episode in numbered for turn in episode.turns)
    rewards = torch.tensor([episode.reward for episode in episodes])
    logprobs = [p for turn in turns for p in turn.completion.logprobs]
    stds = [rewards[group_ids == g].std() for g in range(len(groups))]
    of_each_task = {
        f"success/{name}": _mean([e.success for e in episodes if e.task.name == name])
        for name in sorted({episode.task.name for episode in episodes})
    }
    return of_each_task | {
        "reward": rewards.mean().item(),
        "completion_length": _mean([len(turn.completion.completion_ids) for turn in turns]),
        "entropy": -_mean(logprobs),
        "success": _mean([episode.success for episode in episodes]),
        "reward_std": torch.stack(stds).mean().item(),
        "frac_reward_zero_std": zero_std_fraction(rewards, group_ids),
        "invalid_action_rate": _mean([not turn.valid_action for turn in turns]),
        "episode_length": len(turns) / len(episodes),
        "truncated_rate": _mean([turn.completion.finish_reason == "length" for turn in turns]),
        "page_cut_rate": _mean([turn.completion.lines_cut > 0 for turn in turns]),
        "shared_page_rate": sum(n for n in pages.values() if n > 1) / len(turns),
        "sampling/staleness": _mean([version - turn.completion.policy_version for turn in turns]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
