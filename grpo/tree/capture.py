"""Capturing CUDA graphs: kernels that were launched one by one are launched all at once.

Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

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


class Graphs(Generic[Result]):
    """What was captured of a module's passes, by key, in memory that the graphs share."""

    def __init__(self, module: nn.Module) -> None:
        """Take the module; nothing is captured yet."""
        self._module = module
        self._captured: dict[Hashable, Result] = {}
        self._pool: Pool = None
        self._works = True

    @property
    def pool(self) -> Pool:
        """The graphs' memory."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return self._pool

    def get(self, key: Hashable, make: Callable[[], Result]) -> Result | None:
        """Return what was captured under a key; the first time capture it.

        Args:
            key: the shapes of the pass, and what else its kernels depend on.
            make: captures it.

        Returns:
            What `make` returned; None if the module cannot be captured, which is warned of once.

        Raises:
            torch.OutOfMemoryError: a new graph's tensors do not fit. All graphs are dropped.
        """
        if self._works and key not in self._captured:
            try:
                self._captured[key] = make()
            except torch.OutOfMemoryError:
                self._captured.clear()
                raise
            except RuntimeError as error:
                self._works = False
                reason = " ".join(str(error).split())[:200]
                warnings.warn(
                    f"{type(self._module).__name__} cannot be captured as a CUDA graph, so its "
                    f"kernels are launched one by one: {reason}",
                    stacklevel=3,
                )
        return self._captured.get(key) if self._works else None
