"""Run a vLLM server for a run, with the run's own options."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from grpo.generators.vllm.interface import SERVER, check_interface
from grpo.generators.vllm.lease import MIDDLEWARE
from grpo.generators.vllm.memory import server_memory
from grpo.generators.vllm.options import (
    device_type,
    engine_options,
    require_vllm,
    set_environment,
)
from grpo.model.bundled import bundled_model_path
from grpo.model.device import choose_dtype, dtype_name

if TYPE_CHECKING:
    from grpo.config import Config


def serve(config: Config) -> None:
    """Replace this process by a vLLM server.

    Of the options, model, dtype, device, lora_r, vllm_memory, seed and the first address of
    vllm_url are used. Anyone who can reach the port controls the server: keep it on 127.0.0.1.

    Args:
        config: of the runs that will use the server.

    Raises:
        ConfigError: vLLM is not installed, or is another version.
        FileNotFoundError: the bundled model is asked for and not installed.
    """
    from transformers import AutoConfig

    require_vllm()
    check_interface(SERVER)
    device = device_type(config.device)
    if index := config.device.partition(":")[2]:  # a server takes the first GPU that it sees
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(index)] if seen[0] else index
    model = config.model or str(bundled_model_path())
    model_config = AutoConfig.from_pretrained(model)
    set_environment(device, server=True)
    command = server_command(config, device=device, model=model, model_config=model_config)
    os.execv(command[0], command)


def server_command(config: Config, *, device: str, model: str, model_config: Any) -> list[str]:
    """Build the command line of a server for a run.

    Args:
        config: the run's options.
        device: "cpu" or "cuda".
        model: hub id or folder.
        model_config: the model's configuration, of `transformers`.
    """
    options = engine_options(
        model,
        model_config=model_config,
        dtype=dtype_name(choose_dtype(config.dtype, device)),
        device=device,
        memory=server_memory(device, config.vllm_memory),
        lora_r=config.lora_r,
        seed=config.seed,
    )
    address = urlsplit(next(iter(config.vllm_url), ""))
    options |= {"host": address.hostname or "127.0.0.1", "port": address.port or 80}
    options["middleware"] = MIDDLEWARE
    command = [sys.executable, "-m", "grpo.generators.vllm.api_server"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            command += [flag, json.dumps(value)]
        elif value is not False:
            command += [flag] if value is True else [flag, str(value)]
    return command
