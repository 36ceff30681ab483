"""Data parallel training: one process a GPU, started by torchrun; without it one alone.

Each rank plays its own groups and computes its own gradient; they meet three times a step: to
stop together, to exchange what advantages and averages depend on, and to add up the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from grpo.types import Group

PATIENCE = timedelta(hours=2)
"""A rank whose pages are slow is waited for as long; one that dies ends the others at once."""


class Ranks:
    """The processes that train together.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
        local_rank: number of this one on its machine: its GPU's.
    """

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        """Meet the others that torchrun started; by itself the process is the only one.

        Args:
            environ: torchrun's RANK, WORLD_SIZE, LOCAL_RANK; None for the process's own.
        """
        given = os.environ if environ is None else environ
        self.size = int(given.get("WORLD_SIZE", 1))
        self.rank = int(given.get("RANK", 0))
        self.local_rank = int(given.get("LOCAL_RANK", 0))
        if self.size > 1:
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local_rank)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE
            )

    @property
    def leads(self) -> bool:
        """True for the one that logs and saves."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every rank gave, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_groups(self, groups: Sequence[Group]) -> tuple[list[Group], range]:
        """All ranks' groups, in their order, and which of them are this rank's.

        The others' come without their prompts, which are most of their size.
        """
        if self.size == 1:
            return list(groups), range(len(groups))
        everyone = self.gather([without_prompts(group) for group in groups])
        start = sum(map(len, everyone[: self.rank]))
        shared = [group for each in everyone for group in each]
        shared[start : start + len(groups)] = groups
        return shared, range(start, start + len(groups))

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in one message."""
        if self.size == 1:
            return
        with_none = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        total = torch.cat([gradient.flatten() for gradient in with_none])
        dist.all_reduce(total)
        for p, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def close(self) -> None:
        """Part from the others."""
        if self.size > 1:
            dist.destroy_process_group()


def without_prompts(group: Group) -> Group:
    """The group as far as rewards, lengths and metrics go."""
    return replace(
        group,
        episodes=tuple(
            replace(
                episode,
                turns=tuple(
                    replace(turn, completion=replace(turn.completion, prompt_ids=()))
                    for turn in episode.turns
                ),
            )
            for episode in group.episodes
        ),
    )
