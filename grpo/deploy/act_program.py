"""The program behind `grpo act`: an episode with its log, its pictures and its verdict."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from functools import partial
from typing import Any

from rich.console import Console

from envs.base import Env, Task
from grpo.blocking import wait_for
from grpo.deploy.act import ActStep, act, open_agent
from grpo.deploy.act_options import ActOptions
from grpo.distributed import World
from grpo.files import writable
from grpo.model.loading import load_chat
from grpo.reporting.gallery import write_gallery
from grpo.reporting.progress import Bars
from grpo.reporting.recording import save_episode
from grpo.rollouts.agents import Agent
from grpo.safe_output import one_line
from grpo.shutdown import Shutdown
from grpo.types import Episode, StepRecord, Turn

LABEL = "act"


def run(options: ActOptions, env: AbstractAsyncContextManager[Env], task: Task) -> int:
    """Let an agent act, show what it does, and keep a picture of each page.

    Args:
        options: the program's options.
        env: opens the session.
        task: what to do there.

    Returns:
        The exit code: 0 if the check holds, or, where there is none, if no action was refused or
        failed and a person has declined none; else 1.

    Raises:
        ConfigError, TaskError: the options ask for something that cannot be done.
        EnvError, GeneratorError, OSError: the infrastructure failed; the pictures are kept.
        Stopped: a signal ended the program.
    """
    shutdown = Shutdown()
    return wait_for(run_act(options, env, task, shutdown), World.single(), shutdown)


async def run_act(
    options: ActOptions,
    env: AbstractAsyncContextManager[Env],
    task: Task,
    shutdown: Shutdown | None = None,
) -> int:
    """Do what `run` does, as a coroutine of the caller's event loop."""
    bars = Bars.for_world(World.single())
    with writable(options.output):
        async with shutdown or Shutdown(), env as session, AsyncExitStack() as stack:
            with bars.status(options.endpoint or "loading the model"):
                agent = await stack.enter_async_context(await _agent(options))
            log = _Log(options, session, bars.console)
            steps = act(
                session,
                agent,
                task,
                max_actions=options.max_actions,
                seed=options.config.seed,
                stop_at_repetition=not options.has_check,
                confirm=log.begin,
            )
            try:
                async with aclosing(steps):
                    async for step in steps:
                        log.end(step)
            finally:
                if log.steps:
                    await asyncio.to_thread(_save, log.episode(task), options)
        return log.verdict()


async def _agent(options: ActOptions) -> AbstractAsyncContextManager[Agent]:
    """Return what opens the agent that the options name."""
    config = options.config
    if not options.endpoint:
        return open_agent(config, temperature=options.temperature)
    from grpo.deploy.endpoint import endpoint_agent
    from grpo.deploy.openai_api import api_key_from_environment

    more: dict[str, Any] = {}
    if options.names_model:
        chat, limit = await asyncio.to_thread(load_chat, config)
        room = limit - config.max_completion_tokens
        more = {"chat": chat, "max_prompt_tokens": min(room, config.max_prompt_tokens or room)}
    return endpoint_agent(
        options.endpoint,
        options.endpoint_model,
        api_key=api_key_from_environment(),
        temperature=options.temperature,
        max_tokens=config.max_completion_tokens,
        chat_template_kwargs=config.chat_template_kwargs,
        **more,
    )


class _Log:
    """What has been done so far, as it is shown on the terminal.

    Attributes:
        steps: the actions, of which the last one may have no outcome yet.
    """

    def __init__(self, options: ActOptions, env: Env, console: Console):
        self.steps: list[ActStep] = []
        self._options = options
        self._env = env
        self._print = partial(console.print, soft_wrap=True)

    async def begin(self, step: ActStep) -> bool:
        """Show an action before it is done, and ask about it where that is wanted."""
        if not self.steps:
            self._print(f"goal: {one_line(step.observation.goal)}")
        self.steps.append(step)
        line = f"{step.number:2}. {one_line(step.text)}"
        self._print(f"{line}  {one_line(step.target)}" if step.target else line)
        when = self._options.confirm
        may_send = getattr(self._env, "may_send", None)
        if when == "never" or (when == "submit" and may_send and not may_send(step.text)):
            return True
        return await _ask("    do it? [y/N] ")

    def end(self, step: ActStep) -> None:
        """Show the outcome of an action, and why it was the last one."""
        self.steps[step.number - 1 :] = [step]
        if step.result is not None and step.result.observation.error:
            self._print(f"    {one_line(step.result.observation.error)}")
        if step.stop:
            self._print(self._ending(step))

    def episode(self, task: Task) -> Episode:
        """Return what has been done as an episode."""
        done = [(step, step.result) for step in self.steps if step.result is not None]
        turns = tuple(
            Turn(step.completion, step.text, result.valid_action, result.reward)
            for step, result in done
        )
        records = [StepRecord(step.observation, result) for step, result in done]
        last = self.steps[-1]
        page = last.observation if last.result is None else last.result.observation
        return Episode(
            task,
            turns,
            sum(turn.reward for turn in turns),
            any(result.success for _, result in done),
            "done" if last.stop == "done" else "max_turns",
            last.observation.goal,
            (*records, StepRecord(page)),
        )

    def verdict(self) -> int:
        """Return the exit code."""
        last = self.steps[-1]
        if self._options.has_check:
            return int(not (last.result is not None and last.result.success))
        results = [step.result for step in self.steps if step.result is not None]
        failed = any(not result.valid_action or result.observation.error for result in results)
        return int(failed or last.stop == "declined")

    def _ending(self, step: ActStep) -> str:
        why = {
            "done": "the episode is over",
            "max_actions": f"{step.number} actions are done, and no more are allowed",
            "repeated": "the agent repeats itself: this action was not done again",
            "declined": "it was not done",
        }[step.stop]
        if self._options.has_check:
            holds = step.result is not None and step.result.success
            why += ": the check holds" if holds else "; the check does not hold"
        return f"{why}\n{self._options.output / 'media' / 'index.html'}"


async def _ask(question: str) -> bool:
    """Ask on the terminal; not in a thread, which a signal could not end."""
    print(question, end="", flush=True)
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, answered.set)
    try:
        await answered.wait()
    finally:
        loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _save(episode: Episode, options: ActOptions) -> None:
    media = options.output / "media"
    save_episode(episode, media / LABEL, has_check=options.has_check)
    write_gallery(media, title="grpo act")
