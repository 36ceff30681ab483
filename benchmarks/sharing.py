"""Episodes that share what they do alike, held against the same episodes played alone.

Each start is a task and a seed. Half of its episodes are played by the task's scripted solver, half
by a random agent, with pauses of random length, so that the order of their actions differs from run
to run. All of them are played twice: with sharing and without. Texts, pages, rewards, successes and
ends must be equal, and no replay may lead elsewhere.

    python -m benchmarks.sharing --seeds 5              # all deterministic tasks of MiniWoB
    python -m benchmarks.sharing --tasks click-test,login-user --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from envs.base import Env, Observation, Task
from envs.browser.miniwob.names import MINIWOB_TASKS, TIMED_TASKS
from envs.browser.pool import BrowserPool
from envs.replay import Pool, SharingPool
from grpo.config import Config
from grpo.rollouts.agents import Agent, oracle_agent, random_agent
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion, Episode

LONGEST_PAUSE_S = 0.02
AT_ONCE = 8
"""Starts that are played at the same time."""


def hesitant(agent: Agent) -> Agent:
    """Return the same agent with a pause before each action."""

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_S))
        return await agent(observation, seed, env)

    return act


def outcome(episode: Episode | None) -> object:
    """Return all that training sees of an episode; None if the infrastructure lost it."""
    if episode is None:
        return None
    turns = [(turn.text, turn.state, turn.valid_action, turn.reward) for turn in episode.turns]
    return turns, episode.reward, episode.success, episode.stop_reason, episode.verdicts


async def play(
    pool: Pool, starts: Sequence[Task], group_size: int, max_turns: int, progress: Progress
) -> tuple[list[list[object]], int]:
    """Play all episodes; return their outcomes by start, and how many were lost."""
    agents = hesitant(oracle_agent()), hesitant(random_agent)
    rollouts = [Rollouts(pool, agent, max_turns) for agent in agents]
    bar = progress.add_task(type(pool).__name__, total=len(starts))
    room = asyncio.Semaphore(AT_ONCE)

    async def group(task: Task) -> list[object]:
        async with room, pool.share(task) as lender:
            episodes = await gather(
                rollouts[i % 2].episode(task, [i], lender=lender) for i in range(group_size)
            )
        progress.advance(bar)
        return [outcome(episode) for episode in episodes]

    outcomes = await gather(group(task) for task in starts)
    return outcomes, sum(each.counters["episodes_dropped"] for each in rollouts)


async def compare(names: Sequence[str], seeds: int, group_size: int, turns: int) -> dict[str, Any]:
    """Play every start shared and alone, and count what differs."""
    starts = [Task(name, seed) for seed in range(seeds) for name in names]
    async with BrowserPool(Config(env_sessions=2 * AT_ONCE)) as pool:
        sharing = SharingPool(pool)
        async with pool.lease():  # waits for the server, outside the clock
            pass
        with Progress(console=Console(stderr=True)) as progress:
            began = time.perf_counter()
            shared, lost = await play(sharing, starts, group_size, turns, progress)
            halfway = time.perf_counter()
            alone, also_lost = await play(pool, starts, group_size, turns, progress)
            ended = time.perf_counter()
    pairs = [
        (task, *each)
        for task, *both in zip(starts, shared, alone, strict=True)
        for each in zip(*both, strict=True)
    ]
    played = [(task, one, other) for task, one, other in pairs if one and other]
    episodes = len(starts) * group_size
    return {
        "tasks": len(names),
        "starts": len(starts),
        "episodes": episodes,
        "episodes_executed_share": sharing.counters["episodes_executed"] / episodes,
        "replay_mismatches": sharing.counters["replay_mismatches"],
        "not_deterministic": sorted(sharing.unshared),
        "compared": len(played),
        "different": sum(one != other for _, one, other in played),
        "tasks_that_differ": sorted({task.name for task, one, other in played if one != other}),
        "lost": lost + also_lost,
        "seconds_shared": halfway - began,
        "seconds_alone": ended - halfway,
    }


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = ",".join(sorted(MINIWOB_TASKS - TIMED_TASKS))
    parser.add_argument("--tasks", default=every, help="separated by commas (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds per task: 0, 1, ...")
    parser.add_argument("--group-size", type=int, default=4, help="episodes per start")
    parser.add_argument("--max-turns", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    names = arguments.tasks.split(",")
    result = asyncio.run(compare(names, arguments.seeds, arguments.group_size, arguments.max_turns))
    table = Table("episodes that share, and the same alone", "")
    for name, value in result.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), shown)
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
