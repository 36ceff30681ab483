"""Names of the alternatives in `grpo.algorithm`, kept apart so that reading them needs no torch."""

from __future__ import annotations

from typing import Literal

# losses.py
Loss = Literal["grpo", "gspo", "cispo"]
WITHOUT_DELTA: tuple[Loss, ...] = ("cispo",)
"""Losses that the dual clip does not apply to."""

Aggregation = Literal["grpo", "bnpo", "dapo", "dr_grpo"]
KLKind = Literal["k1", "k2", "k3", "unbiased"]
Level = Literal["token", "sequence"]
Bound = Literal["cap", "mask"]

# advantages.py
Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]

# credit.py
Credit = Literal["episode", "discounted", "steps"]

# The task sampler's, in grpo/rollouts/task_sampler.py.
TaskSampling = Literal["uniform", "learnability", "curriculum"]
