"""Imitation of demonstrations: an optional warm start, before anything is reinforced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import torch

from envs.base import EnvError, TaskError
from envs.demonstrations import Demonstration
from envs.replay import Pool
from grpo.algorithm.batch import rows_from_completions
from grpo.distributed import World
from grpo.model.policy import Policy
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.demonstrations import DemonstrationSampler, replay
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts
from grpo.rollouts.task_sampler import TaskSampler
from grpo.training.updater import Updater
from grpo.types import Episode, TokenBatch

if TYPE_CHECKING:
    from grpo.config import Config

Played = tuple[list[Episode | None], str]
"""Episodes, None for each that the infrastructure lost, and why one of them failed."""

Play = Callable[[int, int, slice], Awaitable[Played]]
"""`(step, count of all ranks, this rank's share)`: plays a step's demonstrations."""

_log = logging.getLogger(__name__)


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
    demonstrations: Sequence[Demonstration] = (),
    max_prompt_tokens: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> int:
    """Do `imitation_steps` updates towards demonstrated episodes, on training seeds.

    Args:
        config: of the run; a step plays one episode per group.
        policy: the policy to train.
        pool: the environments.
        executor: one thread, which does all of torch's work.
        world: the processes that train together.
        demonstrations: what to imitate, see `DemonstrationSampler`; none for the environment's
            scripted solver (see `envs.base.Demonstrator`), on seeds drawn uniformly.
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
    imitation = config.replace(
        beta=0.0,
        log_kl=False,
        importance="none",
        updates_per_batch=1,
        learning_rate=config.imitation_rate,
    )
    updater = Updater(imitation, policy, world, decay_over=config.imitation_steps or 1)
    policy.chat.check_demonstrations()
    if demonstrations:
        play = _recorded(demonstrations, config, policy, pool, max_prompt_tokens)
    else:
        play = _scripted(config, policy, pool, max_prompt_tokens)
    count, per_rank = 0, config.groups_per_step
    for step in range(config.imitation_steps):
        mine = slice(per_rank * world.rank, per_rank * (world.rank + 1))
        played, error = await play(step, per_rank * world.world_size, mine)
        episodes = [episode for episode in played if episode]
        if not episodes:
            raise EnvError(f"no demonstration could be played: {error}")
        solved = [
            episode
            for episode in episodes
            if episode.success and all(turn.completion.completion_ids for turn in episode.turns)
        ]
        if not solved:
            names = ", ".join(sorted({episode.task.name for episode in episodes}))
            why = f": {error}" if error else ""
            raise TaskError(f"nothing to imitate: no demonstration of {names} succeeded{why}")
        count += len(solved)
        batch = demonstration_batch(solved, world.world_size)
        await asyncio.get_running_loop().run_in_executor(executor, updater.update, batch)
        on_step()
    return count


def _scripted(config: Config, policy: Policy, pool: Pool, max_prompt_tokens: int) -> Play:
    """Return what plays the environment's scripted solver on seeds drawn uniformly."""
    oracle = oracle_agent(policy.chat, max_prompt_tokens)
    rollouts, sampler = Rollouts(pool, oracle, config.max_turns), TaskSampler(config.task)

    async def play(step: int, count: int, mine: slice) -> Played:
        tasks = sampler.draw(step, count)[mine]
        episodes = await gather(rollouts.episode(task, [0]) for task in tasks)
        return episodes, rollouts.last_error

    return play


def _recorded(
    demonstrations: Sequence[Demonstration],
    config: Config,
    policy: Policy,
    pool: Pool,
    max_prompt_tokens: int,
) -> Play:
    """Return what plays recorded demonstrations again."""
    sampler = DemonstrationSampler(demonstrations, config.seed)
    told: set[Demonstration] = set()

    async def play(step: int, count: int, mine: slice) -> Played:
        drawn = sampler.draw(step, count)[mine]
        replays = await gather(
            replay(pool, demonstration, task, policy.chat, max_prompt_tokens)
            for demonstration, task in drawn
        )
        failed = [each for each in replays if each.error]
        for each in failed:
            if each.demonstration not in told:
                told.add(each.demonstration)
                task = each.demonstration.task
                _log.warning("not imitated: %s, seed %d: %s", task.name, task.seed, each.error)
        return [each.episode for each in replays], failed[0].error if failed else ""

    return play
