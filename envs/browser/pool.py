"""The browser sessions of a run: on servers that run already, or on one started here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, Protocol, Self

from envs.base import Env
from envs.browser.env import BrowserEnv
from envs.browser.prompt_file import find_prompt
from envs.browser.prompts import ACTION
from envs.browser.server.local import LocalServer
from envs.pool import EnvPool


class BrowserOptions(Protocol):
    """The options of a run that concern its browsers."""

    @property
    def env_url(self) -> Sequence[str]:
        """Addresses of servers, used round-robin; none: start a server here."""

    @property
    def task_file(self) -> str:
        """File of the tasks, for a server started here; empty for BrowserGym's."""

    @property
    def answer(self) -> str:
        """Name of the answer format, see `envs.browser.prompt_file`."""

    @property
    def prompt(self) -> str:
        """`file.py:Class` of the user's own answer format; empty for none."""

    @property
    def env_sessions(self) -> int:
        """Number of sessions at a time."""

    @property
    def env_workers(self) -> int:
        """Number of Chromiums of a server started here."""

    @property
    def env_deadline(self) -> float:
        """Seconds after which a call counts as failed."""

    @property
    def reward(self) -> str:
        """What MiniWoB's tasks reward: "success" or "partial"; see `BrowserEnv`."""


class BrowserPool(EnvPool):
    """Lends browser sessions; starts a local server if one is needed and stops it when closed.

    Creating a pool starts nothing and needs no running event loop.

    Args:
        options: servers, sessions and deadline, for example a `grpo.Config`.
        rank: index of this process among several; each starts its round of the servers at
            another one.
        env: makes an environment, called as `env(url, deadline_s=seconds)`, with `prompt` where the
            options name another answer format than the default, and with `partial_reward=True` if
            that is wanted; a subclass of `BrowserEnv` may change rewards.

    Raises:
        TaskError: the user's own answer format cannot be used.
    """

    def __init__(
        self,
        options: BrowserOptions,
        *,
        rank: int = 0,
        env: Callable[..., Env] = BrowserEnv,
    ):
        super().__init__(self._connect, options.env_sessions)
        # A discarded session may linger on the server while its successor begins.
        self.server = LocalServer(
            options.env_workers,
            max_sessions=2 * options.env_sessions,
            task_file=options.task_file,
        )
        self._urls = islice(cycle(options.env_url), rank, None)
        self._has_server = bool(options.env_url)
        self._starting: asyncio.Task[str] | None = None
        self._env = env
        self._options: dict[str, Any] = {"deadline_s": options.env_deadline}
        if options.reward == "partial":
            self._options["partial_reward"] = True
        if (prompt := find_prompt(options.answer, options.prompt)) is not ACTION:
            self._options["prompt"] = prompt

    async def __aenter__(self) -> Self:
        """Begin to start the server, if one is needed; the first lease waits for it."""
        if not self._has_server:
            self._starting = asyncio.create_task(self.server.ensure())
            # The first lease tries again, and raises what goes wrong.
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await super().__aenter__()

    async def close(self) -> None:
        """Close the sessions, and the server that was started here."""
        try:
            await super().close()
        finally:
            await asyncio.to_thread(self.server.close)

    async def _connect(self) -> Env:
        url = next(self._urls, "") or await self.server.ensure()
        return self._env(url, **self._options)
