"""How vLLM is set for this library, in the trainer's process and as a server: one place for both.

vLLM 0.32 is what the settings were tried with. Its defaults would report log-probabilities
without the temperature, apply the sampling options that a model's folder recommends, and on a
CPU compute LFM2's attention wrongly.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, Literal

import torch

from grpo.config import ConfigError
from grpo.generators.base import GeneratorError
from grpo.model.lora_policy import LoRAPolicy

Sync = Literal["adapter", "merged"]

VERSIONS_KEPT = 4
"""Adapters that stay readable: requests in flight may be that many updates behind, less one."""

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts for max_lora_rank


def max_lora_rank(r: int) -> int:
    """The smallest bound vLLM accepts that an adapter of rank r is under."""
    return next((rank for rank in _RANKS if rank >= r), r)


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            'vLLM is not installed: pip install "grpo-browser[vllm]", or from a checkout '
            "`make click-test BACKEND=vllm`, which installs it beside the project"
        )


def set_environment(device: str, *, server: bool = False) -> None:
    """Set the variables that vLLM reads while it is imported; the user's own values stand."""
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if server:  # adapters and weights may be replaced while it runs
        variables |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
    else:  # the engine in this process, not in a child of it
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        # The user's OMP_NUM_THREADS counts: vLLM would take every core from the browsers.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # The first request with log-probabilities would wait for a kernel to be compiled.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def engine_options(
    model: str,
    *,
    model_type: str,
    dtype: str,
    device: str,
    memory: float,
    lora_r: int,
    seed: int = 0,
    sleep: bool = False,
) -> dict[str, Any]:
    """Name the options of vLLM's `EngineArgs`; the server takes the same on its command line.

    Args:
        model: hub id or folder.
        model_type: of the model's configuration, "llama" or "lfm2".
        dtype: of the weights, as torch writes it ("bfloat16").
        device: "cpu", or "cuda" where vLLM finds it.
        memory: on a GPU the share of its memory that vLLM may take for all it holds, on a CPU
            GiB for keys and values.
        lora_r: the adapter's rank; 0 for an engine that takes merged weights alone.
        seed: of the engine's random numbers.
        sleep: prepare for giving the GPU's memory back.
    """
    options: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": -1,  # the model's own, or what the memory has room for
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # those of what is sampled from
        "generation_config": "vllm",  # no top-p or penalty out of the model's folder
    }
    if lora_r:
        options |= {
            "enable_lora": True,
            "max_lora_rank": max_lora_rank(lora_r),
            "max_loras": 2,  # requests in flight end on the version that they began with
            "max_cpu_loras": VERSIONS_KEPT,
        }
    if device == "cpu":
        options["kv_cache_memory_bytes"] = int(memory * 2**30)
        options["enforce_eager"] = True  # compiling takes longer than it gives back
        if model_type.startswith("lfm2"):
            # vLLM's CPU kernel of the rotary embedding is wrong for LFM2: no error, other text.
            options["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
    else:
        options["gpu_memory_utilization"] = memory
        options["enable_sleep_mode"] = sleep
    return options


def choose_sync(asked: str, device: torch.device) -> Sync:
    """Choose what vLLM is given: what was asked for, or for "auto" what suits the device.

    On a GPU the adapter: a few MB a step, and its kernels cost little. On a CPU the merged
    weights: they take seconds, and every token after them is a multiple faster (docs/vllm.md).
    """
    if asked == "auto":
        return "merged" if device.type == "cpu" else "adapter"
    if asked not in ("adapter", "merged"):
        raise ConfigError(f"vllm_sync must be auto, adapter or merged, got {asked!r}")
    return "adapter" if asked == "adapter" else "merged"


def new_name(policy: LoRAPolicy) -> str:
    """Name the policy as it is now; no name ever comes twice.

    vLLM knows an adapter, and what it has cached for it, by its name alone. A number of
    updates comes again after a checkpoint is loaded, or with the next run on the same server.
    """
    return f"policy-v{policy.version}-{secrets.token_hex(4)}"


class PolicyFolders:
    """Folders that vLLM reads a policy from, the newest few kept."""

    def __init__(self, root: str) -> None:
        """Make a folder of our own in `root`, best in memory (/dev/shm).

        Raises:
            GeneratorError: that cannot be done.
        """
        try:
            self.root = Path(tempfile.mkdtemp(prefix="grpo-", dir=root))
        except OSError as error:
            raise GeneratorError(
                f"no folder for vLLM in {root!r} (vllm_folder): {error}"
            ) from error
        self._written: deque[Path] = deque()

    def write(self, policy: LoRAPolicy, sync: Sync) -> Path:
        """Write the policy into a folder of a new name; older ones go.

        Returns:
            The folder of the adapter, in which "merged" is a whole model if `sync` says so.

        Raises:
            GeneratorError: the folder cannot be written.
        """
        folder = self.root / new_name(policy)
        while len(self._written) >= (VERSIONS_KEPT if sync == "adapter" else 1):
            shutil.rmtree(self._written.popleft(), ignore_errors=True)
        try:
            policy.save(folder)
            if sync == "merged":
                _save_merged(policy, folder / "merged")
        except OSError as error:
            raise GeneratorError(f"cannot write {folder} (vllm_folder): {error}") from error
        self._written.append(folder)
        return folder

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.root, ignore_errors=True)


def _save_merged(policy: LoRAPolicy, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    distinct: dict[int, str] = {}  # tied weights are stored once: vLLM ties them itself
    tensors = dict(policy.merged())
    for name, tensor in tensors.items():
        distinct.setdefault(tensor.data_ptr(), name)
    merged = {name: tensors[name].contiguous() for name in distinct.values()}
    save_file(merged, folder / "model.safetensors")
    policy.model.config.save_pretrained(folder)
