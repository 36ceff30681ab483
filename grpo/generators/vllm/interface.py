"""The names of vLLM that this package uses, and whether the installed vLLM has them.

vLLM renames options and moves classes between minor versions. `scripts/vllm_interface.py` compares
these names with a version that is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grpo.errors import ConfigError
from grpo.generators.vllm.sources import Sources

TESTED = "0.32"
"""The minor version that everything was tested with."""

_RELOAD = "weights_iterator weights_path"
OPTIONS = {
    "vllm.engine.arg_utils.EngineArgs": "model dtype seed max_model_len enable_prefix_caching "
    "logprobs_mode generation_config enable_lora max_lora_rank max_loras max_cpu_loras "
    "kv_cache_memory_bytes enforce_eager compilation_config gpu_memory_utilization "
    "enable_sleep_mode",
    "vllm.config.compilation.CompilationConfig": "custom_ops",
    "vllm.config.model.LogprobsMode": "processed_logprobs",
    "vllm.envs": "VLLM_LOGGING_LEVEL VLLM_NO_USAGE_STATS VLLM_ENABLE_V1_MULTIPROCESSING "
    "VLLM_CPU_OMP_THREADS_BIND VLLM_WORKER_MULTIPROC_METHOD VLLM_ALLOW_RUNTIME_LORA_UPDATING "
    "VLLM_SERVER_DEV_MODE",
}
"""What engine and server are started with: where in vLLM -> names that are used of it.

A `|` separates the places of several versions. The names of a class are its fields, methods and
attributes, those of a function its parameters, those of a type of literals its values.
"""

ENGINE = OPTIONS | {
    "vllm.engine.arg_utils.EngineArgs.create_engine_config": "",
    "vllm.config.vllm.VllmConfig": "device_config",
    "vllm.config.device.DeviceConfig": "device",
    "vllm.v1.executor.uniproc_executor.UniProcExecutor": "_distributed_args driver_worker",
    "vllm.v1.engine.llm_engine.LLMEngine": "engine_core model_config model_executor step wake_up",
    "vllm.v1.engine.llm_engine.LLMEngine.from_vllm_config": "vllm_config disable_log_stats",
    "vllm.v1.engine.llm_engine.LLMEngine.add_request": "request_id prompt params lora_request",
    "vllm.v1.engine.llm_engine.LLMEngine.abort_request": "request_ids internal",
    "vllm.v1.engine.llm_engine.LLMEngine.reset_prefix_cache": "",
    "vllm.v1.engine.llm_engine.LLMEngine.sleep": "level",
    "vllm.v1.engine.core_client.InprocClient": "shutdown",
    "vllm.v1.engine.core_client.InprocClient.collective_rpc": "method kwargs",
    "vllm.v1.engine.core_client.InprocClient.add_lora": "lora_request",
    "vllm.v1.worker.gpu_model_runner.GPUModelRunner.reload_weights": _RELOAD,
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner.reload_weights": _RELOAD,
    "vllm.sampling_params.SamplingParams": "n temperature max_tokens stop_token_ids logprobs "
    "detokenize",
    "vllm.outputs.RequestOutput": "request_id outputs",
    "vllm.outputs.CompletionOutput": "index token_ids logprobs finish_reason",
    "vllm.lora.request.LoRARequest": "lora_name lora_int_id lora_path",
}
"""What an engine in this process needs, in the form of `OPTIONS`."""

MEMORY = {
    "vllm.lora.lora_model.LoRAModel": "loras",
    "vllm.lora.lora_model.LoRAModel.from_lora_tensors": "lora_model_id tensors peft_helper device "
    "dtype weights_mapper",
    "vllm.lora.peft_helper.PEFTHelper.from_dict": "config_dict",
    "vllm.lora.peft_helper.PEFTHelper.validate_legal": "lora_config",
    "vllm.lora.worker_manager.WorkerLoRAManager": "lora_config _adapter_manager",
    "vllm.lora.worker_manager.WorkerLoRAManager._load_adapter": "lora_request",
    "vllm.lora.model_manager.LoRAModelManager": "model modules packed_modules",
    "vllm.v1.worker.lora_model_runner_mixin.LoRAModelRunnerMixin": "lora_manager",
    "vllm.config.lora.LoRAConfig": "lora_dtype",
    "vllm.model_executor.models.utils.WeightsMapper": "get_rename_mapper",
}
"""What adapters in memory need. They are not public, and without them adapters go through files."""

SERVER = OPTIONS | {
    "vllm.entrypoints.openai.api_server": "",
    "vllm.entrypoints.openai.cli_args.FrontendArgs|"
    "vllm.entrypoints.launchers.cli_args.FrontendArgs|"
    "vllm.entrypoints.common.cli_args.FrontendArgs": "host port middleware",
    "vllm.entrypoints.openai.completion.protocol.CompletionRequest": "model prompt n temperature "
    "max_tokens stop_token_ids logprobs return_token_ids",
}
"""What a server and requests to it need, in the form of `OPTIONS`."""

ROUTES = (
    "/health",
    "/v1/models",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/collective_rpc",
    "/reset_prefix_cache",
)
"""Paths that a server must serve."""


def check_interface(used: Mapping[str, str]) -> None:
    """Check that the installed vLLM has the names that are used of it.

    Args:
        used: `ENGINE` or `SERVER`.

    Raises:
        ConfigError: it lacks some, which the message names with vLLM's version.
    """
    if missing := Sources(installed_root()).missing(used):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(
            f"vLLM {installed_version()} differs from the {TESTED} that this was tested with: "
            f"{'; '.join(missing[:3])}{more}. "
            f'Install the one that fits: pip install "vllm=={TESTED}.*"'
        )


def installed_root() -> Path:
    """Return the folder that the installed vLLM's package is in."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def installed_version() -> str:
    """Return the version of the installed vLLM, whichever of its builds it is."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return "of an unknown version"
