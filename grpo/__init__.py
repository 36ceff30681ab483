"""GRPO for language models that act: group-relative policy optimization, from scratch.

Read in this order: `grpo.training.trainer` (the algorithm), `grpo.algorithm.advantages`, `grpo.algorithm.credit` and
`grpo.algorithm.losses` (its formulas), `grpo.model.lora_policy` and `grpo.tree.token_tree` (log-probabilities, each distinct
prefix once), `grpo.rollouts.rollout` and `grpo.generators` (where the episodes come from).
"""

from grpo.algorithm.advantages import group_advantages
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.algorithm.losses import kl_estimate, policy_loss, token_weights
from grpo.config import Config, ConfigError
from grpo.tree.token_tree import TokenTree, build_tree
from grpo.types import Completion, Episode, Group, TokenBatch, Turn

__all__ = [
    "Completion",
    "Config",
    "ConfigError",
    "CreditRule",
    "Episode",
    "Group",
    "TokenBatch",
    "TokenTree",
    "Turn",
    "build_tree",
    "group_advantages",
    "kl_estimate",
    "policy_loss",
    "token_weights",
    "turn_advantages",
]
