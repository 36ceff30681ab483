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


def warm_up(run: Callable[[], object], device: torch.device) -> None:
    """Run a function twice, as a capture needs it: libraries make their workspaces then."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(stream)


def capture(
    run: Callable[[], Result], pool: Pool, device: torch.device
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture what a function launches; nothing is computed.

    Args:
        run: called once.
        pool: memory that the graph shares with others.
        device: what it launches on.

    Returns:
        The graph, and what the function returned: its tensors have values after each replay.

    Raises:
        RuntimeError: the function waits for the device, or does something else that cannot be
            captured.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may use CUDA meanwhile: an engine of vLLM, for one.
    options: dict[str, Any] = {"pool": pool, "capture_error_mode": "thread_local"}
    with torch.cuda.device(device), torch.cuda.graph(graph, **options):
        return graph, run()


def cannot_capture(module: torch.nn.Module, error: Exception) -> str:
    """Say that a module runs without graphs, and why."""
    reason = " ".join(str(error).split())[:200]
    return (
        f"{type(module).__name__} cannot be captured as a CUDA graph, so its kernels are launched "
        f"one by one: {reason}"
    )
