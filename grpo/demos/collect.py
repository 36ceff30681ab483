"""The program behind `grpo demos collect`: episodes that an agent solves, as demonstrations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from envs.base import Env, EnvError, Formatter, Observation, Task
from envs.demonstrations import Demonstration, append_demonstration
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.demos.options import Collection
from grpo.deploy.endpoint import endpoint_agent, only_model
from grpo.deploy.openai_api import api_key_from_environment
from grpo.distributed import World
from grpo.generators.base import GeneratorError
from grpo.reporting.progress import Bars, count
from grpo.rollouts.agents import Agent, oracle_agent
from grpo.rollouts.demonstrations import read_existing
from grpo.rollouts.gather import gather
from grpo.rollouts.rollout import OnEpisode, Rollouts
from grpo.runtime import open_runtime
from grpo.safe_output import one_line
from grpo.shutdown import Shutdown
from grpo.types import Completion, Episode

MAX_FAILURES = 3
"""Failures of the agent in a row after which it is broken: one page may be too long for it."""

_log = logging.getLogger(__name__)


def collect(options: Collection, pool: EnvPool) -> Counter[str]:
    """Let an agent play, and add the episodes that it solves to a file of demonstrations.

    Args:
        options: the agent, the tasks, and the file.
        pool: the environment's sessions; closed at the end.

    Returns:
        How many demonstrations were added, by task.

    Raises:
        ConfigError, TaskError: the options ask for something that cannot be done.
        EnvError, GeneratorError, OSError: the infrastructure failed; what was kept is in the file.
        Stopped: a signal ended the program; what was kept is in the file.
    """
    shutdown = Shutdown()
    return wait_for(run_collection(options, pool, shutdown), World.single(), shutdown)


async def run_collection(
    options: Collection, pool: EnvPool, shutdown: Shutdown | None = None
) -> Counter[str]:
    """Do what `collect` does, as a coroutine of the caller's event loop."""
    config, bars = options.config, Bars.for_world(World.single())
    tasks = _tasks_to_play(options)
    async with _open_agent(options, pool, shutdown or Shutdown()) as (agent, source):
        play = _Player(options, pool, agent, source)
        with bars.bar("episodes", len(tasks)) as on_episode:
            await gather(play(task, on_episode) for task in tasks)
    if tasks and not play.played:
        raise EnvError(f"no episode could be played; the last error: {play.failures[-1]}")
    for name in config.task:
        share = _share(play.kept[name], play.played[name])
        bars.console.print(f"{one_line(name)}: {share}", soft_wrap=True)
    total, lost = len(read_existing(options.output)), len(play.failures)
    also = f"; {count(lost, 'episode')} could not be played" if lost else ""
    bars.console.print(f"{options.output}: {count(total, 'demonstration')}{also}", soft_wrap=True)
    return play.kept


class _Said(NamedTuple):
    """A completion: its action, what it says before, and the page that it was for."""

    action: str
    thought: str
    page: str


@dataclass
class _Player:
    """Plays episodes, and writes those that succeed.

    Attributes:
        options: the program's.
        pool: the environment's sessions.
        agent: plays.
        source: names the agent.
        kept: demonstrations written, by task.
        played: episodes played to an end, by task.
        failures: why the others were not.
    """

    options: Collection
    pool: EnvPool
    agent: Agent
    source: str
    kept: Counter[str] = field(default_factory=Counter)
    played: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _in_a_row: int = 0  # failures of the agent

    async def __call__(self, task: Task, on_episode: OnEpisode) -> None:
        config, said = self.options.config, list[_Said]()

        async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
            text, completion = await self.agent(observation, seed, env)
            plain = env.read_action(text) if isinstance(env, Formatter) else (text.strip(), "")
            said.append(_Said(*plain, observation.page))
            return text, completion

        rollouts, episode = Rollouts(self.pool, act, config.max_turns), None
        try:
            episode = await rollouts.episode(task, [config.seed, task.seed])
            self._in_a_row = 0
        except GeneratorError as error:
            self._in_a_row += 1
            if self._in_a_row == MAX_FAILURES:
                raise
            rollouts.last_error = str(error)
        on_episode(episode)
        if episode is None:
            self.failures.append(rollouts.last_error)
            _log.warning("%s, seed %d: %s", task.name, task.seed, rollouts.last_error)
            return
        self.played[task.name] += 1
        if episode.success:
            said = said[-len(episode.turns) :]  # without those of a failed attempt
            found = _demonstration(episode, said, self.source, config.task_file)
            append_demonstration(self.options.output, found)
            self.kept[task.name] += 1


@asynccontextmanager
async def _open_agent(
    options: Collection, pool: EnvPool, shutdown: Shutdown
) -> AsyncIterator[tuple[Agent, str]]:
    """Open the agent that plays, and the pool; yield the agent and its name."""
    config = options.config
    if not options.oracle and not options.teacher:
        async with open_runtime(config, pool, shutdown=shutdown) as runtime:
            yield runtime.decodings["sampled"], Path(runtime.policy.name).name or "policy"
        return
    async with shutdown, pool:
        if options.oracle:
            yield oracle_agent(), "oracle"
            return
        key = api_key_from_environment()
        model = options.teacher_model or await only_model(options.teacher, api_key=key)
        async with endpoint_agent(
            options.teacher,
            model,
            api_key=key,
            max_tokens=config.max_completion_tokens,
            chat_template_kwargs=config.chat_template_kwargs,
        ) as agent:
            yield agent, model


def _tasks_to_play(options: Collection) -> list[Task]:
    """Return the tasks and seeds that the file lacks, seed by seed."""
    file, every = options.config.task_file, range(options.number)
    has = {each.task for each in read_existing(options.output) if each.task_file == file}
    tasks = [Task(name, seed) for seed in every for name in options.config.task]
    return [task for task in tasks if task not in has]


def _demonstration(
    episode: Episode, said: list[_Said], source: str, task_file: str
) -> Demonstration:
    """Return an episode without its refused actions, which changed nothing."""
    done = [each for turn, each in zip(episode.turns, said, strict=True) if turn.valid_action]
    actions, thoughts, pages = zip(*done, strict=True)
    return Demonstration(
        episode.task,
        episode.goal,
        actions,
        pages,
        source,
        task_file,
        thoughts if any(thoughts) else (),
    )


def _share(kept: int, played: int) -> str:
    if not played:
        return "nothing was played"
    return f"kept {kept} of {count(played, 'episode')} ({kept / played:.2f})"
