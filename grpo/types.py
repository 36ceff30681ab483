"""The nouns of the library, from what was sampled to what is trained on.

A `Completion` is what the generator sampled. A `Turn` is a completion in its episode, an `Episode`
one attempt at a task, a `Group` the episodes of one task and seed. A `TokenBatch` holds turns as
rows of tokens, ready for the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from envs.base import Observation, StepResult, Task
from grpo.transfer import to_device


@dataclass(frozen=True)
class Completion:
    """What the generator saw and sampled; ids are never decoded and encoded again.

    Attributes:
        prompt_ids: the tokens of the prompt.
        completion_ids: the sampled tokens, with the end token if it was sampled.
        logprobs: log-probability of each sampled token under the sampling distribution
            (temperature included), in nats.
        policy_version: number of updates of the policy that sampled it.
        finish_reason: "stop" for an end token, "length" for the limit of new tokens.
        lines_cut: lines of the page that were left out because the prompt was too long.
        is_mixed: True if newer weights arrived between two of its tokens, so that no single
            policy sampled it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    policy_version: int
    finish_reason: Literal["stop", "length"]
    lines_cut: int = 0
    is_mixed: bool = False


@dataclass(frozen=True)
class Turn:
    """One completion in an episode: the unit of training.

    Attributes:
        completion: how it was sampled.
        text: the completion as text.
        valid_action: False if the text is not an action that can be done.
        reward: reward of this step, the bonus for a valid action included.
        state: name of the page that was answered (see `grpo.rollouts.rollout.page_state`).
    """

    completion: Completion
    text: str
    valid_action: bool
    reward: float = 0.0
    state: str = ""


class StepRecord(NamedTuple):
    """One page of an episode, and the result of answering it (None for the last page)."""

    observation: Observation
    result: StepResult | None = None


@dataclass(frozen=True)
class Episode:
    """One attempt at a task.

    Attributes:
        task: the task and the seed of its start.
        turns: the completions, in order.
        reward: sum of the turns' rewards.
        success: True if a step solved the task.
        stop_reason: "done" if the environment ended the episode, else "max_turns".
        goal: the instruction in words; "" where the environment has none.
        records: the pages and their results, where `run_episode` was told to record them.
        verdicts: the steps' `StepResult.verdicts`; each is True if a step's is.
    """

    task: Task
    turns: tuple[Turn, ...]
    reward: float
    success: bool
    stop_reason: Literal["done", "max_turns"]
    goal: str = ""
    records: tuple[StepRecord, ...] = ()
    verdicts: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Episodes that started from the same page: one task, one seed."""

    task: Task
    episodes: tuple[Episode, ...]


@dataclass(frozen=True)
class TokenBatch:
    """N rows of up to T tokens; a row is one turn: prompt, completion, padding.

    Column t of every tensor describes token t.

    Attributes:
        input_ids: [N, T] long; 0 where there is no token.
        token_mask: [N, T] bool; True where there is a token.
        completion_mask: [N, T] bool; True on sampled tokens.
        sampling_logprobs: [N, T] float32; as the generator reported them, 0 elsewhere.
        advantages: [N] float32; of the row's turn.
        token_weights: [N, T] float32; the loss is `(per_token_loss * token_weights).sum()`.
        old_logprobs: [N, T]; of the policy before the update; None where it is the current one.
        ref_logprobs: [N, T]; of the reference policy; None where it is not needed.
        policy_versions: [N] long; of the policy that sampled the row; None for the current one.
        is_mixed: [N] bool; see `Completion.is_mixed`; None for False.
        sampler_logprobs: [N, T]; of the policy that sampled, NaN where it is not known; None
            where it is the one before the update in every row.
    """

    input_ids: Tensor
    token_mask: Tensor
    completion_mask: Tensor
    sampling_logprobs: Tensor
    advantages: Tensor
    token_weights: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    policy_versions: Tensor | None = None
    is_mixed: Tensor | None = None
    sampler_logprobs: Tensor | None = None

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def rows(self) -> list[list[int]]:
        """Return the N rows' token ids without padding."""
        lengths = self.token_mask.sum(1).tolist()
        ids = self.input_ids.tolist()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]

    def select(self, rows: Sequence[int] | Tensor) -> TokenBatch:
        """Return the batch of these rows alone, token weights unchanged."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return self._with([tensor[index] for tensor in self._tensors().values()])

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch with its tensors on a device; from main memory in one copy."""
        if self.input_ids.device.type != "cpu":
            return self._with([tensor.to(device) for tensor in self._tensors().values()])
        return self._with(to_device(self._tensors().values(), device))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _with(self, tensors: Sequence[Tensor]) -> TokenBatch:
        return replace(self, **dict(zip(self._tensors(), tensors, strict=True)))
