"""What the checks of `grpo doctor` share, and how one says that it failed or was skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from envs.base import Env
from envs.pool import EnvPool

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.model.policy import Policy

Result = TypeVar("Result")

GROUPS, GROUP_SIZE, TOKENS = 4, 8, 12
"""A training step with default options, and the length of a completion in it."""


class Failed(Exception):
    """A check's expectation does not hold; the message says what came, and what to do."""


class Skipped(Exception):
    """A check cannot be made here; the message says what would allow it."""


@dataclass
class Context:
    """What the checks share: a check reads what earlier ones found, and adds to it.

    Attributes:
        config: the options; `device` and `model` may still be "auto" and "".
        scripted: makes an environment with the tasks of `envs.scripted`, without a browser.
        browsers: makes the pool of browser sessions; a ConfigError says what is not installed.
        executor: one thread, which does all of torch's work.
        stack: what is closed after the last check.
        measured: figures by name, with their unit in it; part of `--json`.
        device: the device that `config` names; set by the check "device".
        policy: the model that `config` names; set by the check "model".
        pool: sessions of a started browser; set by the check "chromium".
    """

    config: Config
    scripted: Callable[[], Env]
    browsers: Callable[[Config], EnvPool]
    executor: Executor
    stack: AsyncExitStack
    measured: dict[str, float] = field(default_factory=dict)
    device: str = field(init=False)
    policy: Policy = field(init=False)
    pool: EnvPool = field(init=False)

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        """Do torch's work on its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: as it is printed.
        run: makes the check and returns what it found in a line. A plain function is run on
            torch's thread. It raises `Failed` or `Skipped`; any other exception is a failure, too.
        needs: names of checks without which this one is skipped.
    """

    name: str
    run: Callable[[Context], str | Awaitable[str]]
    needs: tuple[str, ...] = ()
