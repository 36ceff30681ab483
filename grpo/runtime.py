"""What a program opens and closes: the policy, its generator, the environment, the signals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from envs.base import Env
from envs.pool import EnvPool
from envs.replay import Pool, SharingPool
from grpo.distributed import World
from grpo.generators.base import Generator
from grpo.generators.factory import check_backend, open_generator
from grpo.model.loading import load_policy
from grpo.model.policy import Policy
from grpo.rollouts.agents import Agent, model_agent
from grpo.shutdown import Shutdown

if TYPE_CHECKING:
    from grpo.config import Config

EnvSource = EnvPool | Callable[[], Env | Awaitable[Env]]
"""A pool of environments, or a class or function that makes an environment."""

Result = TypeVar("Result")


class Runtime(NamedTuple):
    """What a program runs on.

    Attributes:
        config: the program's options.
        world: the processes that work together.
        policy: the model.
        executor: one thread, which does all of torch's work.
        shutdown: the signals that have arrived.
        generator: samples from the policy.
        pool: the environment's sessions.
        decodings: the policy as an agent by its way of decoding, "sampled" and "greedy".
        max_prompt_tokens: longer prompts lose lines of their page.
    """

    config: Config
    world: World
    policy: Policy
    executor: Executor
    shutdown: Shutdown
    generator: Generator
    pool: Pool
    decodings: dict[str, Agent]
    max_prompt_tokens: int

    async def in_executor(self, function: Callable[..., Result], *args: Any) -> Result:
        """Run torch's work on its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)


@asynccontextmanager
async def open_runtime(
    config: Config,
    env: EnvSource,
    world: World | None = None,
    shutdown: Shutdown | None = None,
    loading: AbstractContextManager[None] | None = None,
) -> AsyncIterator[Runtime]:
    """Load, start and connect what a configuration names; close it at the end of the block.

    Args:
        config: the program's options.
        env: the environment; a pool is closed with the rest.
        world: the processes that work together; None for this one alone.
        shutdown: handles the signals; None for a new one.
        loading: entered while the model is loaded and the generator is opened, to show it.

    Raises:
        ConfigError: the configuration asks for something that cannot be done.
        GeneratorError: the generator does not start.
        Stopped: a signal ended the block.
    """
    world = world or World.single()
    check_backend(config, world)
    # One thread for all of torch's work leaves the event loop to the environments and the signals.
    # (OpenMP gives each thread that computes threads of its own. Once there are more than cores,
    # they sleep between operations: an update with many small ones took a tenth longer.)
    executor = ThreadPoolExecutor(1, "torch", initializer=world.use_own_gpu)
    pool = env if isinstance(env, EnvPool) else EnvPool(env, config.env_sessions)
    async with shutdown or Shutdown() as shutdown, AsyncExitStack() as stack:
        await stack.enter_async_context(pool)  # its server starts meanwhile
        with loading or nullcontext():
            loop = asyncio.get_running_loop()
            policy = await loop.run_in_executor(executor, load_policy, config)
            # Midnight may be between the ranks.
            policy.chat.date = world.all_gather(policy.chat.date)[0]
            generator = await stack.enter_async_context(
                open_generator(config, policy, executor, world)
            )
        room = policy.max_length - config.max_completion_tokens
        max_prompt_tokens = min(room, config.max_prompt_tokens or room)
        decodings = {
            name: model_agent(
                generator,
                policy.chat,
                temperature=temperature,
                max_prompt_tokens=max_prompt_tokens,
            )
            for name, temperature in (("sampled", config.temperature), ("greedy", 0.0))
        }
        yield Runtime(
            config,
            world,
            policy,
            executor,
            shutdown,
            generator,
            SharingPool(pool) if config.share_episodes else pool,
            decodings,
            max_prompt_tokens,
        )
    executor.shutdown()
