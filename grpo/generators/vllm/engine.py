"""vLLM in the trainer's process, with its engine on a thread beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from grpo.errors import ConfigError
from grpo.generators.base import Generator, GeneratorError, completion_limit
from grpo.generators.vllm.engine_thread import EngineThread, Request
from grpo.generators.vllm.engine_weights import (
    EngineWeights,
    adapter_config,
    keep_process_group,
)
from grpo.generators.vllm.memory import engine_memory
from grpo.generators.vllm.options import (
    choose_sync,
    engine_options,
    require_vllm,
    set_environment,
)
from grpo.model.device import dtype_name
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.model.policy import Policy


class VLLMEngine(Generator):
    """Samples with vLLM in this process (see `grpo.generators.base.Generator`).

    Requests of one tick of the event loop with equal prompt, temperature and limit become one
    request to vLLM with n samples. Samples depend on the engine's seed and the order of requests:
    on a CPU vLLM cannot seed a single request, so `seed` is not used.

    Attributes:
        weight_sync: how weights reach the engine, "adapter" or "merged".
        max_length: limit of prompt and completion together, in tokens.
        busy_seconds: wall time with at least one request in flight.
        tokens_sampled: tokens of all completions so far.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_new_tokens: int = 32,
        memory: float = 0.0,
        weight_sync: str = "auto",
        sleep: bool = False,
        seed: int = 0,
    ) -> None:
        """Start the engine with the policy as it is; blocks until it is ready.

        Args:
            policy: the policy to sample from; read at each `sync`.
            max_new_tokens: default limit of a completion's length.
            memory: share of the GPU's whole memory; on a CPU, GiB for keys and values; 0 to
                choose by what is free (`engine_memory`).
            weight_sync: "adapter", "merged", or "auto" to choose by the device.
            sleep: let `sleep` free the GPU's memory until the next request or sync.
            seed: seed of vLLM's random numbers.

        Raises:
            ConfigError: vLLM is not installed, or cannot do what is asked for, or there is too
                little memory.
            GeneratorError: the engine does not start.
        """
        if policy.adapter() is None:
            if weight_sync == "adapter":
                raise ConfigError("vllm_sync=adapter needs train=lora: train=full has no adapter")
            weight_sync = "merged"
        require_vllm()
        if sleep and policy.device.type == "cpu":
            raise ConfigError("vllm_sleep needs a GPU: on a CPU there is no GPU memory to free")
        memory = engine_memory(policy, memory, sleeps=sleep)
        set_environment(policy.device.type)
        self.policy, self.max_new_tokens = policy, max_new_tokens
        self.weight_sync = choose_sync(weight_sync, policy.device)
        self.busy_seconds, self.tokens_sampled = 0.0, 0
        self._sleep = sleep
        self._arrived: list[Request] = []
        self._closed = False

        def make_weights() -> EngineWeights:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            if policy.device.type == "cuda":  # vLLM also asks for the thread's current GPU
                torch.cuda.set_device(policy.device)
            adapter = adapter_config(policy) if self.weight_sync == "adapter" else {}
            options = engine_options(
                policy.name,
                model_config=policy.model.config,
                dtype=dtype_name(policy.model.dtype),
                device=policy.device.type,
                memory=memory,
                lora_r=adapter.get("r", 0),
                seed=seed,
                sleep=sleep,
            )
            vllm_config = EngineArgs(**options).create_engine_config()
            vllm_config.device_config.device = policy.device  # or vLLM takes the first GPU
            group = dist.group.WORLD
            with keep_process_group(group):
                engine = LLMEngine.from_vllm_config(vllm_config, disable_log_stats=True)
            return EngineWeights(engine, policy, self.weight_sync, adapter, group)

        self._thread = EngineThread(make_weights)
        limit = self._thread.weights.engine.model_config.max_model_len
        self.max_length = min(policy.max_length, limit)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        seed: int,
        temperature: float = 1.0,
        max_new_tokens: int | None = None,
    ) -> Completion:
        """Sample one completion (see `Generator.generate`)."""
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        limit = completion_limit(
            prompt_ids,
            limit,
            self.max_length,
            bound="the model's limit, or what fits into vllm_memory,",
        )
        self._require_open()
        request = Request(tuple(prompt_ids), temperature, limit)
        if not self._arrived:  # submit all requests of this tick of the loop together
            asyncio.get_running_loop().call_soon(self._submit)
        self._arrived.append(request)
        try:
            return await asyncio.wrap_future(request.done)
        finally:
            self.busy_seconds = self._thread.busy_seconds
            self.tokens_sampled = self._thread.tokens_sampled

    async def sync(self) -> None:
        """Give the engine the trainer's weights (see `Generator.sync`).

        An adapter is added beside the older one, with which requests in flight continue. Merged
        weights replace the older ones, so those requests are finished first.
        """
        self._require_open()
        await asyncio.wrap_future(self._thread.update())

    async def sleep(self) -> None:
        """Free the GPU's memory until the next request or sync, if `sleep` was asked for."""
        self._require_open()
        if self._sleep:
            await asyncio.wrap_future(self._thread.sleep())

    async def close(self) -> None:
        """Shut the engine down; requests in flight are cancelled."""
        self._closed = True
        await asyncio.to_thread(self._thread.close)

    def _require_open(self) -> None:
        if self._closed:
            raise GeneratorError("this generator is closed")

    def _submit(self) -> None:
        arrived, self._arrived = self._arrived, []
        self._thread.submit(arrived)
