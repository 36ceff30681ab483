"""Where completions come from: `base` is the contract, `local` the embedded default."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.generators.base import Generator
    from grpo.policy import LoRAPolicy


@asynccontextmanager
async def open_generator(
    config: Config, policy: LoRAPolicy, executor: Executor
) -> AsyncIterator[Generator]:
    """Open the generator that a configuration names; the block's end closes it.

    One that holds the policy in a place of its own has passed `check_sampler` before it is
    handed out. A policy that is loaded from a checkpoint after that wants a `sync`.

    Args:
        config: of the run.
        policy: what is sampled from.
        executor: one thread, which does all of torch's work.

    Raises:
        ConfigError: what is asked for cannot be done, or a package is missing.
        GeneratorError: the generator does not start, or samples from something else.
    """
    if config.backend == "local":
        from grpo.generators.local import LocalGenerator

        yield LocalGenerator(
            policy,
            max_new_tokens=config.max_new_tokens,
            executor=executor,
            cache_tokens=config.cache_tokens,
            threads=config.sampling_threads or None,
        )
        return
    from grpo.generators.probe import check_sampler

    generator = await _open_vllm(config, policy)
    try:
        await check_sampler(
            policy,
            generator,
            config.max_logp_difference,
            temperature=config.temperature,
            executor=executor,
        )
        yield generator
    finally:
        await generator.close()


async def _open_vllm(config: Config, policy: LoRAPolicy) -> Generator:
    if config.backend == "vllm":
        from grpo.generators.vllm_engine import VLLMEngine

        return await asyncio.to_thread(
            VLLMEngine,
            policy,
            max_new_tokens=config.max_new_tokens,
            memory=config.vllm_memory,
            sync=config.vllm_sync,
            sleep=config.vllm_sleep,
            seed=config.seed,
        )
    from grpo.generators.vllm_server import VLLMServer

    return VLLMServer(
        policy,
        [url.strip() for url in config.vllm_url.split(",") if url.strip()],
        max_new_tokens=config.max_new_tokens,
        sync=config.vllm_sync,
        folder=config.vllm_folder,
        deadline_s=config.vllm_deadline,
    )
