"""How fast the device multiplies and copies, and how anything on it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from grpo.doctor.context import Context
from grpo.model.device import choose_dtype, dtype_name

MEASURED = (torch.float32, torch.bfloat16, torch.float16)

AT_LEAST_S = 0.2
"""Seconds for which a speed is measured."""


def rates(context: Context) -> str:
    """Measure how fast the device multiplies matrices in each dtype, and copies memory."""
    on_cpu = torch.device(context.device).type == "cpu"
    size, parts = 1024 if on_cpu else 8192, []
    rate: dict[str, float] = {}
    for dtype in MEASURED:
        try:
            a = torch.randn(size, size, device=context.device).to(dtype)  # 1s take less power
            seconds = seconds_per_call(partial(torch.mm, a, a), context.device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError):  # the check "dtypes" says why
            continue
        name = dtype_name(dtype)
        rate[name] = 2 * size**3 / seconds / 1e9
        context.measured[f"{name}_gflop_per_s"] = rate[name]
        large = rate[name] >= 1000
        parts.append(
            f"{name} {rate[name] / (1000 if large else 1):.3g} {'T' if large else 'G'}FLOP/s"
        )
    source = torch.empty(2**27 if on_cpu else 2**29, dtype=torch.uint8, device=context.device)
    source.fill_(1)
    target = torch.empty_like(source)
    seconds = seconds_per_call(lambda: target.copy_(source), context.device)
    bandwidth = 2 * source.numel() / seconds / 1e9  # read and written
    context.measured["memory_gb_per_s"] = bandwidth
    parts.append(f"memory {bandwidth:.3g} GB/s")
    chosen = dtype_name(choose_dtype(context.config.dtype, context.device))
    if chosen in rate and rate[chosen] < rate.get("float32", 0.0):
        parts.append(f"{chosen} is slower than float32 here: dtype=float32 saves time")
    return ", ".join(parts)


def seconds_per_call(work: Callable[[], object], device: str) -> float:
    """Measure the seconds of a call after the first, up to the end of the device's work."""

    def seconds(calls: int) -> float:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        return time.perf_counter() - started

    if (first := seconds(1)) > 1:  # too slow to repeat
        return first
    calls = 1
    while (elapsed := seconds(calls)) < AT_LEAST_S:
        calls *= 2
    return elapsed / calls


def synchronize(device: str) -> None:
    """Wait until the device has done all work that was given to it."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))
