"""Copies between main memory and a device, with as few waits as possible.

A plain copy makes the host wait until a GPU has done all that it was given before, and then the
GPU waits for the host. What goes to the device together goes in one copy that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor


def to_device(tensors: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors from main memory to a device: one copy, from pinned memory on CUDA.

    Args:
        tensors: on the CPU, of any shapes and dtypes.
        device: where to; the CPU returns them as they are.

    Returns:
        The tensors on the device; on CUDA they are views of one buffer.
    """
    tensors = list(tensors)
    if device.type != "cuda":  # Apple's GPUs share the CPU's memory, and may not view its bytes
        return [x.to(device) for x in tensors]
    sizes = [-(-x.nbytes // 8) * 8 for x in tensors]  # each starts where an int64 may start
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=True)
    for x, part in zip(tensors, packed.split(sizes), strict=True):
        part[: x.nbytes] = x.reshape(-1).view(torch.uint8)
    parts = packed.to(device, non_blocking=True).split(sizes)
    return [
        part[: x.nbytes].view(x.dtype).view(x.shape) for x, part in zip(tensors, parts, strict=True)
    ]


def to_host(sums: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Copy numbers from a device to main memory, all in one copy.

    Args:
        sums: dicts of scalars.

    Returns:
        The dicts on the CPU; all numbers have the dtype that holds them all.
    """
    scalars = [x for each in sums for x in each.values()]
    if not scalars:
        return [{} for _ in sums]
    dtype = reduce(torch.promote_types, (x.dtype for x in scalars))
    copied = iter(torch.stack([x.to(dtype) for x in scalars]).cpu())
    return [{name: next(copied).clone() for name in each} for each in sums]
