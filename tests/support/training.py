"""What tests of a trainer ask of it."""

import torch

from grpo.training.checkpoint import checkpoints


async def run(trainer):
    """Train to the end; return the metrics of each step."""
    return [step.metrics async for step in trainer.train()]


def parameters(trainer):
    """Copy the trained weights."""
    return [p.detach().clone() for p in trainer.policy.parameters()]


def equal(one, other):
    """Tell whether two lists of tensors are equal bit by bit."""
    return all(map(torch.equal, one, other))


def saved(trainer):
    """Name the checkpoints of the run."""
    return [path.name for path in checkpoints(trainer.config.folder)]
