"""GRPO for language models that act: group-relative policy optimization, from scratch.

Read in this order: `grpo.trainer` (the algorithm), `grpo.advantages`, `grpo.credit` and
`grpo.losses` (its formulas), `grpo.policy` and `grpo.tree` (log-probabilities, each distinct
prefix once), `grpo.rollout` and `grpo.generators` (where the episodes come from).
"""

from grpo.advantages import group_advantages
from grpo.config import Config, ConfigError
from grpo.credit import CreditRule, turn_advantages
from grpo.losses import kl_estimate, policy_loss, token_weights
from grpo.tree import TokenTree, build_tree
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
