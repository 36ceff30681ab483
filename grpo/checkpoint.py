"""Checkpoints: written whole or not at all, the newest few kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from grpo.config import ConfigError
from grpo.policy import LoRAPolicy

STATE_FILE = "trainer.pt"


def save_checkpoint(
    run: Path, step: int, policy: LoRAPolicy, state: dict[str, Any], *, keep: int
) -> Path:
    """Write `checkpoints/step-<step>/` with the adapter and the trainer's state.

    A folder of that name is always complete: it is written under another name and renamed.

    Args:
        run: the run's folder.
        step: training steps done.
        policy: its adapter is saved in PEFT's format.
        state: the rest (optimizer, schedule, counters): tensors and plain values.
        keep: how many checkpoints stay, at least 1; those of later steps go.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    unfinished = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    policy.save(unfinished / "adapter")
    torch.save(state, unfinished / STATE_FILE)
    for path in [*unfinished.rglob("*"), unfinished]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    found = checkpoints(run)
    kept = [path for path in found if path.name <= folder.name][-keep:]
    for other in found:
        if other not in kept:  # later steps are of an earlier run into the same folder
            shutil.rmtree(other)
    return folder


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".tmp")


def load_checkpoint(run: Path, policy: LoRAPolicy) -> dict[str, Any]:
    """Load the newest checkpoint's adapter into the policy and return the trainer's state.

    Raises:
        ConfigError: the run has no checkpoint, or its adapter does not fit the policy.
    """
    found = checkpoints(run)
    if not found:
        raise ConfigError(f"nothing to resume: no checkpoint in {str(run / 'checkpoints')!r}")
    try:
        policy.load(found[-1] / "adapter")
    except ValueError as error:
        raise ConfigError(f"cannot resume from {found[-1].name}: {error}") from error
    return torch.load(found[-1] / STATE_FILE, weights_only=True)
