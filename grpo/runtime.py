"""What every program is put together from: the policy, its sampler and the environment."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

from rich.console import Console

from envs.pool import EnvPool
from grpo.config import Config
from grpo.distributed import World
from grpo.generators.base import Generator
from grpo.generators.factory import open_generator
from grpo.model.loading import load_policy
from grpo.model.policy import Policy
from grpo.reporting.progress import Bars
from grpo.rollouts.rollout import Act, model_agent
from grpo.shutdown import GracefulShutdown

OpenPool = Callable[[Config, int], AbstractAsyncContextManager[EnvPool]]
"""`(config, rank)` -> a pool of the environment's sessions, e.g. `envs.browser.pool.browser_pool`."""


class Runtime(NamedTuple):
    """The parts of a program.

    Attributes:
        ways: the policy's ways to answer, sampled and greedy.
        max_prompt_tokens: longer prompts lose lines of their page.
    """

    config: Config
    world: World
    console: Console
    bars: Bars
    policy: Policy
    executor: Executor
    stop: GracefulShutdown
    generator: Generator
    pool: EnvPool
    ways: dict[str, Act]
    max_prompt_tokens: int


@asynccontextmanager
async def open_runtime(
    config: Config, open_pool: OpenPool, world: World | None = None
) -> AsyncIterator[Runtime]:
    """Load, start and connect what a configuration names; the block's end closes it.

    Args:
        config: of the program.
        open_pool: the environment.
        world: the processes that work together; None for this one alone.

    Raises:
        ConfigError: what is asked for cannot be done.
        GeneratorError: the sampler does not start.
        Stopped: a signal ended the block.
    """
    world = world or World.single()
    width = None if sys.stdout.isatty() else 120  # of a log: tables are not folded to 80
    console = Console(highlight=False, quiet=not world.is_main, width=width)
    console.print(f"[bold]{', '.join(config.tasks)}[/]  loading the model")
    policy = load_policy(config)
    # One thread for all of torch's work: the event loop stays free for the browsers.
    executor = ThreadPoolExecutor(1, thread_name_prefix="torch")
    async with (
        GracefulShutdown() as stop,
        open_generator(config, policy, executor, world) as generator,
        open_pool(config, world.rank) as pool,
    ):
        room = policy.max_length - config.max_new_tokens
        limit = min(room, config.max_prompt_tokens or room)
        ways = {
            way: model_agent(
                generator,
                policy.tokenizer,
                temperature=temperature,
                max_prompt_tokens=limit,
            )
            for way, temperature in (("sampled", config.temperature), ("greedy", 0.0))
        }
        yield Runtime(
            config,
            world,
            console,
            Bars(console),
            policy,
            executor,
            stop,
            generator,
            pool,
            ways,
            limit,
        )
    executor.shutdown()
