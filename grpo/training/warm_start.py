"""Imitation of a scripted solver: an optional warm start, before anything is reinforced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from envs.base import EnvError, Observation, TaskError
from grpo.algorithm.batch import make_batch
from grpo.rollouts.rollout import Act, Rollouts, gather, read_prompt
from grpo.rollouts.task_sampler import TaskSampler
from grpo.runtime import Runtime
from grpo.training.updater import Updater
from grpo.types import Completion, Episode, Group, TokenBatch


def oracle_agent(tokenizer: Any = None, max_prompt_tokens: int = 0) -> Act:
    """The policy that says what the environment demonstrates: the oracle.

    Args:
        tokenizer: makes the tokens to imitate; None for none, where nobody learns from it.
        max_prompt_tokens: see `read_prompt`.

    Returns:
        A policy that does nothing, `noop()`, where nothing is demonstrated.
    """

    async def act(observation: Observation, seed: int) -> tuple[str, Completion]:
        text = observation.demonstration
        prompt_ids: Sequence[int] = ()
        ids: Sequence[int] = ()
        if tokenizer is not None:
            prompt_ids, _ = read_prompt(observation, tokenizer, max_prompt_tokens)
            ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        completion = Completion(tuple(prompt_ids), tuple(ids), (0.0,) * len(ids), -1, "stop")
        return text or "noop()", completion

    return act


def imitation_batch(episodes: Sequence[Episode], world: int = 1) -> TokenBatch:
    """Rows whose policy gradient is that of maximum likelihood: every advantage is 1.

    The gradient of the clipped surrogate at a ratio of 1 is A times that of log p; with A = 1 and
    tokens averaged over the batch it is the gradient of behaviour cloning's loss.

    Args:
        episodes: to imitate, all their turns.
        world: how many such batches are added up.
    """
    # A group of one has no baseline; twice the same episode is the same average.
    group = Group(episodes[0].task, tuple(episodes) if len(episodes) > 1 else (*episodes,) * 2)
    batch = make_batch([group], aggregation="dapo")
    assert batch is not None  # no row is dropped
    return replace(
        batch, advantages=torch.ones(len(batch)), token_weights=batch.token_weights / world
    )


async def imitate(parts: Runtime, on_step: Callable[[], None] = lambda: None) -> int:
    """Do `warm_start_steps` updates towards demonstrated episodes, on seeds of training.

    Args:
        parts: of the run; a step plays one episode a group.
        on_step: called after each update.

    Returns:
        How many demonstrations this rank imitated.

    Raises:
        TaskError: no episode of a step was demonstrated to success.
        EnvError: the machinery lost all episodes of a step.
    """
    config, policy, world = parts.config, parts.policy, parts.world
    # An optimizer of its own, and nothing that has a meaning for samples alone. (At a ratio of 1
    # every `loss` has the same gradient.)
    plain: dict[str, Any] = {"beta": 0.0, "log_kl": False, "importance": "none"}
    plain["updates_per_batch"] = 1
    updater = Updater(replace(config, **plain), policy, world)
    oracle = oracle_agent(policy.tokenizer, parts.max_prompt_tokens)
    play, sampler = Rollouts(parts.pool, oracle, config.max_turns), TaskSampler(config.tasks)
    count = 0
    for step in range(config.warm_start_steps):
        tasks = sampler.draw(step, config.groups_per_step * world.world_size)
        own = tasks[config.groups_per_step * world.rank :][: config.groups_per_step]
        episodes = [e for e in await gather(play.episode(task, [0]) for task in own) if e]
        if not episodes:
            raise EnvError(f"no demonstration could be played: {play.last_error}")
        solved = [episode for episode in episodes if episode.success]
        if not solved:
            names = ", ".join(sorted({task.name for task in own}))
            raise TaskError(f"nothing to imitate: no solver of {names} succeeded")
        count += len(solved)
        batch = imitation_batch(solved, world.world_size)
        await asyncio.get_running_loop().run_in_executor(parts.executor, updater.update, batch)
        on_step()
    return count
