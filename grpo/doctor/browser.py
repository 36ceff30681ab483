"""Checks of the browser and its server, and what then bounds a training step."""

from __future__ import annotations

import os
import time

from envs.base import Task
from grpo.doctor.context import GROUP_SIZE, GROUPS, TOKENS, Context, Failed, Skipped
from grpo.errors import ConfigError
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts

EPISODES = 20


async def chromium(context: Context) -> str:
    """Start the browser server with its Chromiums, and load a page."""
    started = time.monotonic()
    try:
        pool = context.browsers(context.config)
    except ConfigError as error:
        missing = isinstance(error.__cause__, ModuleNotFoundError | FileNotFoundError)
        if missing and not os.environ.get("GRPO_CHROMIUM"):
            raise Skipped(str(error)) from error
        raise
    context.pool = await context.stack.enter_async_context(pool)
    async with pool.lease() as env:
        await env.reset(Task(context.config.task[0], 0))
    return f"started, and loaded a page, in {time.monotonic() - started:.1f} s"


async def episodes(context: Context) -> str:
    """Play episodes with the oracle; each must be rewarded."""
    task, pool = context.config.task[0], context.pool
    rollouts = Rollouts(pool, oracle_agent(), max_turns=1)
    started = time.monotonic()
    played = await gather(rollouts.episode(Task(task, n), [n]) for n in range(EPISODES))
    rate = EPISODES / (time.monotonic() - started)
    rewarded = sum(episode is not None and episode.success for episode in played)
    found = (
        f"{rewarded} of {EPISODES} {task} episodes with the oracle were rewarded, {rate:.1f} per "
        f"second in {pool.size} sessions"
    )
    if failures := rollouts.counters["env_failures"]:
        found += f", {failures} sessions failed, the last one: {rollouts.last_error}"
    if rewarded < EPISODES:
        raise Failed(f"{found}: try fewer --env-sessions or --env-workers")
    context.measured["episodes_per_s"] = rate
    return found


def step(context: Context) -> str:
    """Say which part of a training step takes longest, from what was measured."""
    measured, count = context.measured, GROUPS * GROUP_SIZE
    seconds = {"generation": measured["generation_s"], "update": measured["update_s"]}
    parts = [f"{name} {s:.2g} s" for name, s in seconds.items()]
    if rate := measured.get("episodes_per_s"):
        seconds["browsers"] = count / rate
        parts.insert(0, f"browsers {count} / {rate:.1f} = {seconds['browsers']:.2g} s")
    else:
        parts.insert(0, "browsers not measured")
    longest = max(seconds, key=lambda name: seconds[name])
    return (
        f"{count} episodes ({GROUPS} groups x {GROUP_SIZE}, one turn of {TOKENS} tokens): "
        f"{', '.join(parts)}: {longest} bound{'s' * (longest != 'browsers')} a step"
    )
