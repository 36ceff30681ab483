"""Capturing CUDA graphs: kernels that were launched one by one are launched all at once.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Pool = Any
"""The memory that graphs share, from `torch.cuda.graph_pool_handle()`."""


def warm_up(run: Callable[[], object]) -> None:
    """Run a function twice, as a capture needs it: libraries make their workspaces then."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)


def capture(run: Callable[[], Result], pool: Pool) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture what a function launches; nothing is computed.

    Returns:
        The graph, and what the function returned: its tensors have values after each replay.

    Raises:
        RuntimeError: the function waits for the device, or does something else that cannot be
            captured.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may use CUDA meanwhile: an engine of vLLM, for one.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return graph, result


def cannot_capture(module: torch.nn.Module, error: Exception) -> str:
    """Say that a module runs without graphs, and why."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"{type(module).__name__} cannot be captured as a CUDA graph, so its kernels are launched "
        f"one by one: {reason}"
    )
