"""The device that a configuration names."""

from __future__ import annotations

import torch

from grpo.errors import ConfigError, one_line_reason


def choose_device(device: str) -> str:
    """Return the device that an option names; for "auto" a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
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
    return device
