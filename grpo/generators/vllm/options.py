"""Options of vLLM, the same for the engine in the trainer's process and for servers.

They were tested with vLLM 0.32. Its defaults report log-probabilities without the temperature,
apply the sampling options that a model's folder recommends, and on a CPU compute LFM2's attention
wrongly.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any, Literal

import torch

from grpo.errors import ConfigError
from grpo.generators.vllm.interface import ENGINE, check_interface
from grpo.model.device import choose_device
from grpo.model.limits import short_rope_length

if TYPE_CHECKING:
    from grpo.config import Config

WeightSync = Literal["adapter", "merged"]
"""What vLLM is given after an update: the adapter, or the model's weights with it merged in."""

VERSIONS_KEPT = 4
"""Adapters that stay readable: requests in flight may be VERSIONS_KEPT - 1 updates behind."""

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts for max_lora_rank


def max_lora_rank(r: int) -> int:
    """Find the smallest `max_lora_rank` that vLLM accepts for an adapter of rank r."""
    return next((rank for rank in _RANKS if rank >= r), r)


def check_engine(config: Config) -> None:
    """Check that vLLM can be what a configuration asks for: an engine in this process.

    Raises:
        ConfigError: it is not installed, is another version, or cannot do that.
    """
    if config.train == "full" and config.vllm_sync == "adapter":
        raise ConfigError("vllm_sync=adapter needs train=lora: train=full has no adapter")
    require_vllm()
    check_interface(ENGINE)
    if device_type(config.device) == "cpu" and config.vllm_sleep:
        raise ConfigError("vllm_sleep needs a GPU: on a CPU there is no GPU memory to free")


def device_type(device: str) -> str:
    """Return "cpu" or "cuda" for a device of the configuration.

    Raises:
        ConfigError: it is another one, or not there.
    """
    name = choose_device(device).partition(":")[0]
    if name not in ("cpu", "cuda"):
        raise ConfigError(
            f"vLLM computes on cuda or cpu, and the device here is {name}: use --backend local"
        )
    return name


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # None: some folder of that name
        raise ConfigError(
            'vLLM is not installed: pip install "grpo-browser[vllm]", or from a checkout '
            "`make click-test BACKEND=vllm`, which installs it beside the project"
        )


def set_environment(device: str, *, server: bool = False) -> None:
    """Set the variables that vLLM reads while it is imported, unless the user has set them.

    Args:
        device: "cpu" or "cuda".
        server: set them for a server instead of an engine in this process.
    """
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if server:  # let adapters and weights be replaced while it runs
        variables |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"}
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # see grpo.generators.vllm.api_server
    else:  # run the engine in this process, not in a child process
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        # Keep to the user's OMP_NUM_THREADS: vLLM would take every core from the browsers.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Or the first request with log-probabilities waits until a kernel is compiled.
        variables["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def engine_options(
    model: str,
    *,
    model_config: Any,
    dtype: str,
    device: str,
    memory: float,
    lora_r: int,
    seed: int = 0,
    sleep: bool = False,
) -> dict[str, Any]:
    """Build the options of vLLM's `EngineArgs`; its server takes the same on the command line.

    Args:
        model: hub id or folder.
        model_config: the model's configuration, of `transformers`.
        dtype: dtype of the weights without "torch.", e.g. "bfloat16".
        device: "cpu", or "cuda" where vLLM finds a GPU.
        memory: on a GPU, share of its memory that vLLM may use for everything; on a CPU, GiB for
            keys and values.
        lora_r: rank of the adapter; 0 for an engine that receives merged weights only.
        seed: seed of the engine's random numbers.
        sleep: enable vLLM's sleep mode, which frees the GPU's memory.
    """
    options: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "seed": seed % 2**32,  # vLLM passes it to numpy
        # Any longer, and vLLM takes LongRoPE's long factors for every row; -1 for the model's own
        # limit, or less where the memory is too small.
        "max_model_len": short_rope_length(model_config) or -1,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled from
        "generation_config": "vllm",  # ignore top-p and penalties of the model's folder
    }
    if lora_r:
        options |= {
            "enable_lora": True,
            "max_lora_rank": max_lora_rank(lora_r),
            "max_loras": 2,  # requests in flight keep the version that they started with
            "max_cpu_loras": VERSIONS_KEPT,
        }
    if device == "cpu":
        options["kv_cache_memory_bytes"] = int(memory * 2**30)
        options["enforce_eager"] = True  # compiling takes longer than it saves
        if model_config.model_type.startswith("lfm2"):
            # vLLM's CPU kernel of the rotary embedding is silently wrong for LFM2.
            options["compilation_config"] = {"custom_ops": ["all", "-rotary_embedding"]}
    else:
        options["gpu_memory_utilization"] = memory
        options["enable_sleep_mode"] = sleep
    return options


def choose_sync(asked: str, device: torch.device) -> WeightSync:
    """Choose how weights reach vLLM: as asked, or for "auto" by the device.

    On a GPU the adapter: a few MB per step, and its kernels cost little. On a CPU the merged
    weights: they take seconds, but every token after that is sampled several times faster
    (docs/vllm.md).

    Args:
        asked: "auto", "adapter" or "merged".
        device: the policy's device.

    Raises:
        ConfigError: `asked` is none of them.
    """
    if asked == "auto":
        return "merged" if device.type == "cpu" else "adapter"
    if asked not in ("adapter", "merged"):
        raise ConfigError(f"vllm_sync must be auto, adapter or merged, got {asked!r}")
    return "adapter" if asked == "adapter" else "merged"
