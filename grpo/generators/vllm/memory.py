"""How much of a device's memory vLLM gets beside the trainer, or before it."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch

from grpo.errors import ConfigError

if TYPE_CHECKING:
    from grpo.model.policy import Policy

GIB = 2**30
CPU_CACHE = 0.3
"""GiB for keys and values on a CPU."""

WORKING_MEMORY = GIB
"""Bytes that an engine needs beside its weights, at least: activations, CUDA graphs, its cache."""

OF_FREE, OF_FREE_ASLEEP = 0.5, 0.85
"""Shares of the free memory for an engine that stays awake in updates, and for one that sleeps.

The rest is for the update's activations; while the engine sleeps, all of it is.
"""


def engine_memory(policy: Policy, asked: float, *, sleeps: bool) -> float:
    """Compute what `engine_options` takes as memory, for an engine beside a loaded policy.

    Args:
        policy: the trainer's, as it is loaded.
        asked: `vllm_memory`; 0 to choose.
        sleeps: True if the engine frees its memory during updates.

    Returns:
        On a GPU the share of its whole memory, which is what vLLM's `gpu_memory_utilization` is
        of; vLLM counts towards it what it allocates itself, not what the trainer holds. On a CPU
        GiB for keys and values.

    Raises:
        ConfigError: that is not free, or too little for the model.
    """
    if policy.device.type == "cpu":
        return asked or CPU_CACHE
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(policy.device)
    numbers = sum(p.numel() for p in policy.model.parameters())
    # Of a quantised base vLLM holds the whole matrices.
    quantized = (module for module in policy.model.modules() if hasattr(module, "packed"))
    numbers += sum(prod(module.shape) for module in quantized)
    return memory_share(
        free,
        total,
        weights=numbers * policy.model.dtype.itemsize,
        # The gradient and AdamW's two moments come with the first update, and stay.
        reserved=sum(3 * p.numel() * p.element_size() for p in policy.parameters()),
        asked=asked,
        sleeps=sleeps,
    )


def server_memory(device: str, asked: float) -> float:
    """Compute what `engine_options` takes as memory, for a server.

    Args:
        device: "cpu" or "cuda".
        asked: `vllm_memory`; 0 for half of what is free, as a trainer may follow.
    """
    if device == "cpu":
        return asked or CPU_CACHE
    if asked:
        return asked
    free, total = torch.cuda.mem_get_info(device)
    return OF_FREE * free / total


def memory_share(
    free: int, total: int, *, weights: int, reserved: int, asked: float, sleeps: bool
) -> float:
    """Compute the share of a GPU's memory for an engine.

    Args:
        free: bytes that are free with the trainer's model loaded.
        total: bytes of the GPU.
        weights: bytes of the engine's weights.
        reserved: bytes that the trainer will hold for good, beside what it holds now.
        asked: the share that the user asks for; 0 to choose.
        sleeps: True if the engine frees its memory during updates.

    Raises:
        ConfigError: see `engine_memory`.
    """
    of_free = OF_FREE_ASLEEP if sleeps else OF_FREE
    given = asked * total if asked else of_free * max(0, free - reserved)
    needed = weights + WORKING_MEMORY
    state = f"{free / GIB:.1f} of the GPU's {total / GIB:.1f} GiB are free beside the trainer"
    if given > free:
        raise ConfigError(
            f"vllm_memory={asked:g} is a share of the GPU's whole memory, {given / GIB:.1f} GiB, "
            f"but {state}: set it below {free / total:.2f}, or to 0 to let it be chosen"
        )
    if given < needed:
        part = f"{asked:g} of all" if asked else f"{of_free:g} of what is free"
        advice = "" if sleeps else "--vllm-sleep, a larger --vllm-memory, "
        raise ConfigError(
            f"vLLM needs at least {needed / GIB:.1f} GiB, {weights / GIB:.1f} of them for weights, "
            f"and would get {given / GIB:.1f} ({part}): {state}; try {advice}a smaller model, or "
            "--backend local, which shares the trainer's weights"
        )
    return given / total
