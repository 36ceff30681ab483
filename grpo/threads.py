"""Variables that torch reads when it is imported: OpenMP's threads, and what Apple's GPUs lack."""

from __future__ import annotations

import os
import sys
from pathlib import Path

GPU_DRIVERS = [Path(f"/dev/{name}") for name in ("nvidiactl", "kfd", "dxg")]  # NVIDIA, AMD, WSL


def bind_threads(device: str) -> None:
    """Bind each OpenMP thread to a core where the CPU computes, unless the user has decided.

    On a Mac nothing is bound; operations that Apple's GPUs lack may run on the CPU there.

    Unbound threads may share a core and spin there: a step then takes several times as long.
    (Threads and processes that a bound one starts inherit its core; the environment server takes
    all cores back.) Call this before torch is imported, which reads these variables. Where a GPU
    computes, the binding would only keep this process on one core.

    Args:
        device: the option: "auto", "cpu", or an accelerator's name.
    """
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    on_cpu = device == "cpu" or (device == "auto" and not any(map(Path.exists, GPU_DRIVERS)))
    if (
        sys.platform == "linux"
        and on_cpu
        and not any(name.startswith("OMP_") for name in os.environ)
    ):
        os.environ |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}


def sampling_threads(wanted: int) -> int:
    """Return how many threads sample: what is wanted, and for 0 two if they are bound, else one.

    Of unbound threads one may wait for another on its own core: two took ten times as long as one.
    """
    import torch

    is_bound = os.environ.get("OMP_PROC_BIND", "false").lower() not in ("false", "")
    return wanted or (min(2, torch.get_num_threads()) if is_bound else 1)
