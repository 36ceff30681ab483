"""The generator that a configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.generators.base import Generator

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.model.policy import Policy


def check_backend(config: Config, world: World) -> None:
    """Check what a configuration asks of the generator, before a model is loaded for it.

    Raises:
        ConfigError: see `open_generator`.
    """
    if config.backend == "vllm":
        from grpo.generators.vllm.options import check_engine

        check_engine(config)
    if config.backend == "vllm-server":
        if config.train == "full":
            raise ConfigError(
                "backend=vllm-server needs train=lora: with train=full use backend local or vllm"
            )
        if len(config.vllm_url) < world.world_size:
            raise ConfigError(
                f"vllm_url must name at least one server per rank: expected {world.world_size}, "
                f"got {len(config.vllm_url)}"
            )


@asynccontextmanager
async def open_generator(
    config: Config, policy: Policy, executor: Executor, world: World | None = None
) -> AsyncIterator[Generator]:
    """Open the generator that a configuration names; close it at the end of the block.

    A generator with its own copy of the policy has passed `check_sync` before the block begins.
    If the policy is loaded from a checkpoint after that, call `sync`.

    Args:
        config: the run's options.
        policy: the policy to sample from.
        executor: one thread, which does all of torch's work.
        world: the processes that train together; they divide vLLM's servers among them.

    Raises:
        ConfigError: the configuration asks for something that cannot be done, or a package is
            missing.
        GeneratorError: the generator does not start, or samples from another policy.
    """
    world = world or World.single()
    check_backend(config, world)
    if config.backend == "local":
        from grpo.generators.local import LocalGenerator
        from grpo.threads import sampling_threads

        yield LocalGenerator(
            policy,
            max_new_tokens=config.max_completion_tokens,
            executor=executor,
            cache_tokens=config.cache_tokens,
            threads=sampling_threads(config.sampling_threads),
        )
        return
    from grpo.generators.sync_check import check_sync

    generator = await _open_vllm(config, policy, world)
    try:
        await check_sync(
            policy,
            generator,
            config.max_logp_difference,
            temperature=config.temperature,
            executor=executor,
        )
        yield generator
    finally:
        await generator.close()


async def _open_vllm(config: Config, policy: Policy, world: World) -> Generator:
    if config.backend == "vllm":
        from grpo.generators.vllm.engine import VLLMEngine
        from grpo.generators.vllm.memory import engine_memory

        memory = engine_memory(policy, config.vllm_memory, sleeps=config.vllm_sleep)
        # Engines wait for each other while they start, so none starts where another cannot.
        world.all_gather(memory)
        return await asyncio.to_thread(
            VLLMEngine,
            policy,
            max_new_tokens=config.max_completion_tokens,
            memory=memory,
            weight_sync=config.vllm_sync,
            sleep=config.vllm_sleep,
            seed=config.seed + world.rank,  # the ranks sample independently
        )
    from grpo.generators.vllm.servers import VLLMServers

    return VLLMServers(
        policy,
        config.vllm_url[world.rank :: world.world_size],  # one rank gives a server its policy
        max_new_tokens=config.max_completion_tokens,
        weight_sync=config.vllm_sync,
        folder=config.vllm_folder,
        deadline_s=config.vllm_deadline,
        run=str(config.folder),
    )
