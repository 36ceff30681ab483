"""The device that a configuration names, and what it cannot do."""

from __future__ import annotations

import platform
import warnings

import torch
import torch.distributed as dist

from grpo.errors import ConfigError, one_line_reason

MPS_NOTE = (
    "device mps: what torch cannot do on Apple's GPUs runs on the CPU (float64, which tokens are "
    "drawn in; some operations, with a warning for each); device=cpu avoids the copies"
)

EMULATED_NOTE = (
    "this CPU has no instructions for bfloat16, so torch emulates them: dtype=float32 is many "
    "times faster here"
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


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the dtype that an option names; for "auto" what the device is fastest in.

    That is bfloat16 if the device has instructions for it. Where torch emulates them a product
    takes longer than in float32: on a CPU with AVX2 alone 2 to 3 times forward, 15 to 40 backward.

    Args:
        dtype: "auto", or the name of a dtype.
        device: see `choose_device`.
    """
    if dtype != "auto":
        named: torch.dtype = getattr(torch, dtype)
        return named
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: str) -> bool:
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_has_bfloat16() if kind == "cpu" else _refusal(device, torch.bfloat16) is None


def _cpu_has_bfloat16() -> bool:
    """Tell whether the CPU has instructions for it: AVX512_BF16, as all with AMX, or ARM's."""
    if platform.machine().lower() in ("arm64", "aarch64") and torch.backends.mkldnn.is_available():
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # oneDNN's own answer is True for any AVX-512, and converts where that has no bfloat16.
    return bool(torch.cpu._is_avx512_bf16_supported())


def check_dtype(device: str, dtype: torch.dtype) -> None:
    """Check that a device has a dtype; warn of what it emulates, and of what else it lacks.

    Raises:
        ConfigError: it has not.
    """
    if refusal := _refusal(device, dtype):
        raise ConfigError(
            f"dtype {dtype_name(dtype)} cannot be used on device {device!r}: expected another one, "
            f"such as float32; got: {one_line_reason(refusal)}"
        ) from refusal
    if device == "cpu" and dtype == torch.bfloat16 and not _cpu_has_bfloat16():
        warnings.warn(EMULATED_NOTE, stacklevel=2)
    if device.startswith("mps"):
        warnings.warn(MPS_NOTE, stacklevel=2)


def _refusal(device: str, dtype: torch.dtype) -> Exception | None:
    """Return why a device cannot hold a dtype, as Apple's GPUs before macOS 14 bfloat16."""
    try:
        torch.ones(1, device=device, dtype=dtype).item()
    except (RuntimeError, TypeError) as error:
        return error
    return None


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that options and files have for a dtype."""
    return str(dtype).removeprefix("torch.")


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
