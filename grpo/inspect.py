"""The program behind `grpo inspect`: a task as a policy meets it, before anything is trained."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from envs.base import Box, Demonstrator, EnvError, Observation, Task
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.config import Config
from grpo.distributed import World
from grpo.files import replacing, writable
from grpo.model.chat import ChatTemplate
from grpo.model.loading import load_chat
from grpo.reporting.inspection import Inspection, Played, print_inspection
from grpo.reporting.labels import labelled
from grpo.reporting.progress import Bar, Bars
from grpo.rollouts.agents import Agent, oracle_agent, random_agent, read_prompt
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import Rollouts
from grpo.safe_output import one_line
from grpo.shutdown import Shutdown


def inspect(config: Config, pool: EnvPool) -> list[Inspection]:
    """Show each task of a configuration: goal, page, what agents score, a labelled screenshot.

    Args:
        config: the options; `seed` is that of the first page and of the first episode,
            `eval_episodes` the number of episodes, `output` the folder of the screenshots.
        pool: the environment's sessions; closed at the end.

    Raises:
        ConfigError, TaskError: the configuration asks for something that cannot be done.
        EnvError, OSError: the infrastructure failed.
        Stopped: a signal ended the program.
    """
    shutdown = Shutdown()
    return wait_for(run_inspection(config, pool, shutdown), World.single(), shutdown)


async def run_inspection(
    config: Config, pool: EnvPool, shutdown: Shutdown | None = None
) -> list[Inspection]:
    """Do what `inspect` does, as a coroutine of the caller's event loop."""
    bars = Bars.for_world(World.single())
    found = []
    with writable(config.folder):
        async with shutdown or Shutdown(), pool:
            chat, limit = await asyncio.to_thread(load_chat, config)
            room = limit - config.max_completion_tokens
            max_tokens = min(room, config.max_prompt_tokens or room)
            for name in config.evaluated_tasks:
                task = Task(name, config.seed)
                found.append(await _inspect_task(config, pool, chat, max_tokens, task, bars))
                print_inspection(bars.console, found[-1])
    return found


class _FirstPage(NamedTuple):
    observation: Observation
    boxes: Mapping[str, Box]
    is_demonstrated: bool


async def _inspect_task(
    config: Config, pool: EnvPool, chat: ChatTemplate, max_tokens: int, task: Task, bars: Bars
) -> Inspection:
    first = await _first_page(pool, task)
    picture = await asyncio.to_thread(_draw, first, config.folder, task)
    agents: dict[str, Agent] = {"random": random_agent}
    if first.is_demonstrated:
        agents["scripted"] = oracle_agent()
    played, longest = {}, 0
    for name, agent in agents.items():
        with bars.bar(f"{one_line(task.name)} {name}", config.eval_episodes) as on_episode:
            played[name], tokens = await _play(config, pool, chat, agent, task, on_episode)
        longest = max(longest, tokens)
    prompt, lines_cut = read_prompt(first.observation, chat, max_tokens)
    page = chat.tokenizer(first.observation.page, add_special_tokens=False)
    return Inspection(
        task,
        Path(chat.name).name,
        first.observation,
        len(page["input_ids"]),
        len(prompt),
        max_tokens,
        lines_cut,
        longest,
        played["random"],
        played.get("scripted"),
        picture,
        len(first.boxes),
    )


async def _first_page(pool: EnvPool, task: Task) -> _FirstPage:
    """Start an episode, on a fresh session if the first one fails."""
    for is_retry in (False, True):
        try:
            async with pool.lease(fresh=is_retry) as env:
                observation = await env.reset(task, screenshot=True)
                is_demonstrated = isinstance(env, Demonstrator) and bool(env.demonstrate())
                boxes = dict(getattr(env, "boxes", {}))  # a browser's environment has them
                return _FirstPage(observation, boxes, is_demonstrated)
        except EnvError:
            if is_retry:
                raise
    raise AssertionError("unreachable")


async def _play(
    config: Config, pool: EnvPool, chat: ChatTemplate, agent: Agent, task: Task, on_episode: Bar
) -> tuple[Played, int]:
    """Play an agent's episodes; return what happened, and the length of the longest prompt."""
    rollouts = Rollouts(pool, agent, config.max_turns)
    episodes = await gather(
        rollouts.episode(
            Task(task.name, task.seed + i),
            [config.seed, task.seed + i],
            record=True,
            on_episode=on_episode,
        )
        for i in range(config.eval_episodes)
    )
    read = [r.observation for e in episodes if e for r in e.records if r.result is not None]
    lengths = await asyncio.to_thread(lambda: [len(chat.prompt(each.messages)) for each in read])
    return Played.of(episodes, rollouts), max(lengths, default=0)


def _draw(first: _FirstPage, folder: Path, task: Task) -> Path | None:
    """Save the screenshot with the elements' ids; return where it is."""
    if first.observation.screenshot is None:
        return None
    path = folder / f"{one_line(task.name).replace('/', '-')}-{task.seed}.png"
    with replacing(path) as unfinished:
        unfinished.write_bytes(labelled(first.observation.screenshot, first.boxes))
    return path
