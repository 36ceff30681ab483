"""Imitation of a scripted solver: an optional warm start, before anything is reinforced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import torch

from envs.base import EnvError, TaskError
from envs.replay import Pool
from grpo.algorithm.batch import rows_from_completions
from grpo.distributed import World
from grpo.model.policy import Policy
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.rollout import Rollouts, gather
from grpo.rollouts.task_sampler import TaskSampler
from grpo.training.updater import Updater
from grpo.types import Episode, TokenBatch

if TYPE_CHECKING:
    from grpo.config import Config


def demonstration_batch(episodes: Sequence[Episode], world_size: int = 1) -> TokenBatch:
    """Lay out demonstrations so that their policy gradient is that of maximum likelihood.

    The gradient of the clipped surrogate at a ratio of 1 is A times that of log p. With A = 1 and
    tokens averaged over the batch it is the gradient of behavior cloning's loss.

    Args:
        episodes: what to imitate, all their turns.
        world_size: number of ranks whose batches are added up.
    """
    completions = [turn.completion for episode in episodes for turn in episode.turns]
    tokens = sum(len(completion.completion_ids) for completion in completions)
    ones = torch.ones(len(completions))
    return rows_from_completions(completions, ones, ones / (tokens * world_size))


async def warm_start(
    config: Config,
    policy: Policy,
    pool: Pool,
    executor: Executor,
    world: World,
    *,
    max_prompt_tokens: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> int:
    """Do `warm_start_steps` updates towards demonstrated episodes, on training seeds.

    Args:
        config: of the run; a step plays one episode per group.
        policy: the policy to train.
        pool: environments that demonstrate (see `envs.base.Demonstrator`).
        executor: one thread, which does all of torch's work.
        world: the processes that train together.
        max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`.
        on_step: called after each update.

    Returns:
        How many demonstrations this rank imitated.

    Raises:
        ConfigError: the model's chat template cannot show a demonstration.
        TaskError: no episode of a step was demonstrated to success.
        EnvError: the infrastructure lost all episodes of a step.
    """
    # A separate optimizer, without what only makes sense for samples. (At a ratio of 1 every
    # `loss` has the same gradient.)
    imitation = config.replace(beta=0.0, log_kl=False, importance="none", updates_per_batch=1)
    updater = Updater(imitation, policy, world)
    policy.chat.check_demonstrations()
    oracle = oracle_agent(policy.chat, max_prompt_tokens)
    rollouts, task_sampler = Rollouts(pool, oracle, config.max_turns), TaskSampler(config.task)
    count, per_rank = 0, config.groups_per_step
    for step in range(config.warm_start_steps):
        tasks = task_sampler.draw(step, per_rank * world.world_size)
        tasks = tasks[per_rank * world.rank :][:per_rank]
        episodes = [e for e in await gather(rollouts.episode(task, [0]) for task in tasks) if e]
        if not episodes:
            raise EnvError(f"no demonstration could be played: {rollouts.last_error}")
        solved = [
            episode
            for episode in episodes
            if episode.success and all(turn.completion.completion_ids for turn in episode.turns)
        ]
        if not solved:
            names = ", ".join(sorted({task.name for task in tasks}))
            raise TaskError(f"nothing to imitate: no solver of {names} succeeded")
        count += len(solved)
        batch = demonstration_batch(solved, world.world_size)
        await asyncio.get_running_loop().run_in_executor(executor, updater.update, batch)
        on_step()
    return count
