"""The nouns of the library, from what was sampled to what is trained on.

Completion (one sampled answer) -> Turn (the answer in its episode) -> Episode -> Group
(the episodes of one task and seed) -> TokenBatch (rows of tokens, ready for the loss).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from envs.base import Task


@dataclass(frozen=True)
class Completion:
    """Exactly what the generator saw and sampled; ids are never decoded and encoded again.

    Attributes:
        prompt_ids: the tokens that were read.
        completion_ids: the tokens that were sampled, with the end token if it was.
        logprobs: log-probability of each sampled token under the sampling distribution
            (temperature included), in nats.
        policy_version: number of updates of the policy that sampled it.
        finish_reason: "stop" for an end token, "length" for the limit of new tokens.
        lines_cut: lines of the page that were left out because the prompt was too long.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int
    finish_reason: Literal["stop", "length"]
    lines_cut: int = 0


@dataclass(frozen=True)
class Turn:
    """One answer of the policy in an episode: the unit of training.

    Attributes:
        completion: how it was sampled.
        text: what it says.
        valid_action: False if it was no action that could be done.
        reward: of its step, the bonus for a valid action included.
        state: names the page that it answers to (see `grpo.rollouts.rollout.page_state`).
    """

    completion: Completion
    text: str
    valid_action: bool
    reward: float = 0.0
    state: str = ""


@dataclass(frozen=True)
class Episode:
    """One attempt at a task.

    Attributes:
        task: the task and the seed of its start.
        turns: the answers, in order.
        reward: the sum of the turns' rewards.
        success: True if a step solved the task.
        stop_reason: "done" (the environment ended it) or "max_turns".
        goal: the instruction in words, "" where the environment has none.
    """

    task: Task
    turns: tuple[Turn, ...]
    reward: float
    success: bool
    stop_reason: Literal["done", "max_turns"]
    goal: str = ""


@dataclass(frozen=True)
class Group:
    """Episodes that started from the same page: one task, one seed."""

    task: Task
    episodes: tuple[Episode, ...]


@dataclass(frozen=True)
class TokenBatch:
    """N rows (one row is one turn: prompt, completion, padding) of up to T tokens.

    Column t of every tensor describes token t.

    Attributes:
        input_ids: [N, T] long; 0 where there is no token.
        token_mask: [N, T] bool; True where there is a token.
        completion_mask: [N, T] bool; True on sampled tokens.
        sampling_logprobs: [N, T] float32; what the sampler reported, 0 elsewhere.
        advantages: [N] float32; of the row's turn.
        token_weights: [N, T] float32; the loss is `(per_token_loss * token_weights).sum()`.
        old_logprobs: [N, T]; of the policy before the update, None where it is the policy.
        ref_logprobs: [N, T]; of the reference policy, None where it is not asked for.
    """

    input_ids: Tensor
    token_mask: Tensor
    completion_mask: Tensor
    sampling_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self) -> list[list[int]]:
        """The N rows' token ids without padding."""
        lengths = self.token_mask.sum(1).tolist()
        ids = self.input_ids.tolist()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def select(self, rows: Sequence[int] | Tensor) -> TokenBatch:
        """The batch of these rows alone, weights unchanged."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: change(v) for k, v in tensors.items() if v is not None})
