"""The device that a configuration names, and what it cannot do."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist

from grpo.errors import ConfigError, one_line_reason

MPS_NOTE = (
    "device mps: what torch cannot do on Apple's GPUs runs on the CPU (float64, which tokens are "
    "drawn in; some operations, with a warning for each); device=cpu avoids the copies"
)


def best_device(*, cuda: bool, mps: bool) -> str:
    """Return what "auto" means: CUDA (ROCm's name in torch, too), Apple's GPU, the CPU."""
    return "cuda" if cuda else "mps" if mps else "cpu"


def choose_device(device: str) -> str:
    """Return the device that an option names; for "auto" a GPU where there is one.

    Raises:
        ConfigError: there is no such device here, or the ranks cannot use it.
    """
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = best_device(cuda=torch.cuda.is_available(), mps=mps)
    else:
        _require(device)
    if device.startswith("mps") and dist.is_initialized():
        raise ConfigError("device mps is for a single rank: expected device=cpu under torchrun")
    return device


def check_dtype(device: str, dtype: torch.dtype) -> None:
    """Check that a device has a dtype; warn of what else it lacks.

    Raises:
        ConfigError: it has not, as bfloat16 on Apple's GPUs before macOS 14.
    """
    try:
        torch.ones(1, device=device, dtype=dtype).item()
    except (RuntimeError, TypeError) as error:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"dtype {name} cannot be used on device {device!r}: expected another one, such as "
            f"float32; got: {one_line_reason(error)}"
        ) from error
    if device.startswith("mps"):
        warnings.warn(MPS_NOTE, stacklevel=2)


def _require(device: str) -> None:
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # torch's exceptions of devices are of many kinds
        there = ["auto", "cpu"]
        if accelerator := torch.accelerator.current_accelerator():
            there += [f"{accelerator}:{n}" for n in range(torch.accelerator.device_count())]
        raise ConfigError(
            f"device {device!r} cannot be used here: expected one of {', '.join(there)}; "
            f"got: {one_line_reason(error)}"
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an allocation failed: on a GPU, or where torch has no class for it."""
    named = ("can't allocate memory", "MPS backend out of memory")  # on a CPU, on Apple's GPUs
    return isinstance(error, torch.OutOfMemoryError) or any(name in str(error) for name in named)
