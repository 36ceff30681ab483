"""Start a vLLM server for a run, with the run's own options.

    python -m grpo.generators.vllm.serve --dtype float32 --vllm-url http://127.0.0.1:8001

Of the options (`--help`) the model, dtype, device, LoRA rank, vllm_memory, seed and the first
address of vllm_url count. Whoever reaches the port commands the server: keep it on 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from grpo.config import Config, ConfigError
from grpo.generators.vllm.options import engine_options, require_vllm, set_environment
from grpo.model.bundled import bundled_model_path
from grpo.model.loading import choose_device


def server_command(config: Config, *, device: str, model: str, model_type: str) -> list[str]:
    """Spell the command that starts a server for a run."""
    options = engine_options(
        model,
        model_type=model_type,
        dtype=config.dtype,
        device=device,
        memory=config.vllm_memory,
        lora_r=config.lora_r,
        seed=config.seed,
    )
    address = urlsplit(next(iter(config.vllm_urls), ""))
    options |= {"host": address.hostname or "127.0.0.1", "port": address.port or 80}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            command += [flag, json.dumps(value)]
        elif value is not False:
            command += [flag] if value is True else [flag, str(value)]
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """Become a vLLM server."""
    from transformers import AutoConfig

    configs = Path("examples", "configs")
    try:
        config = Config.from_command_line(argv, description=str(__doc__), configs=configs)
        require_vllm()
    except ConfigError as error:
        sys.exit(f"error: {error}")
    device = choose_device(config)
    model = config.model or str(bundled_model_path())
    model_type = AutoConfig.from_pretrained(model).model_type
    set_environment(device, server=True)
    command = server_command(config, device=device, model=model, model_type=model_type)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
