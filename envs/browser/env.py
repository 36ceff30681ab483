"""BrowserGym over OpenEnv as an `Env`: a page in messages, an action in text."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from envs.base import Box, EnvError, Observation, StepResult, Task, TaskError
from envs.browser.actions import InvalidAction, format_action, parse_action
from envs.browser.connection import client_class, describe, server_url, token_headers
from envs.browser.element_ids import page_id
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.prompts import TEXT_ROLES, Element, page_messages, simplify_axtree
from envs.browser.protocol import Answer, no_such_task, read_reset, read_step

CLOSE_DEADLINE_S = 5.0
MAX_ERROR_LENGTH = 200

_MENTIONED_BID = re.compile(r"""(bid[ =]|get_by_test_id\()(["'])(\w+)\2""")


class BrowserEnv:
    """One WebSocket session with a browser server, connected at the first reset.

    Element ids are renumbered for each (task, seed), see `envs.browser.element_ids`. An action that
    names an id which is not on the page never reaches the server. The server is one of
    `envs.browser.server`, or OpenEnv's own BrowserGym server with what `envs.browser.protocol` says of it.

    Args:
        base_url: the server's address, `http://host:port`, or the page of a Hugging Face Space.
        deadline_s: seconds a reset or a step may take, waiting its turn included, and for the
            first reset the connection, which a sleeping Space delays by minutes.
        headers: HTTP headers of the connection; None for those of `envs.browser.connection.token_headers`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        deadline_s: float = 30.0,
        headers: dict[str, str] | None = None,
    ):
        self.base_url = server_url(base_url)
        self.deadline_s = deadline_s
        self.headers = token_headers(self.base_url) if headers is None else headers
        self._client: Any = None
        self._dead = ""
        self._task: Task | None = None  # None: no episode is running
        self._screenshot = False
        self._history: list[str] = []
        self._bids: dict[str, str] = {}
        self._boxes: dict[str, Box] = {}  # by the server's ids
        self._elements: list[Element] = []  # of the current page, under the ids the model reads
        self._observation = Observation(messages=())

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode; see `Env.reset`.

        Args:
            task: a MiniWoB task such as `click-test`, with or without `miniwob.` in front.
            screenshot: True to have a picture in every observation of this episode; without
                pictures the finished page comes without its text, for nobody acts on it.

        Raises:
            TaskError: the server has no such task, or answers with another one.
            EnvError: the machinery failed; this environment is dead from then on.
        """
        self._task, self._history, self._screenshot = None, [], screenshot
        name = task.name.removeprefix("miniwob.")
        options = {"screenshot": screenshot, "final_page": screenshot}
        payload = await self._ask(
            lambda client: client.reset(task_name=name, seed=task.seed, **options)
        )
        with self._reading():
            answer = read_reset(payload, name, screenshot=screenshot)
            self._observation = self._observe(task, answer, answer.goal)
        self._task = task
        return self._observation

    async def step(self, text: str) -> StepResult:
        """Do what the model said; see `Env.step`.

        Raises:
            RuntimeError: no episode is running: the last one is over, or none was begun.
            EnvError: the machinery failed; this environment is dead from then on.
        """
        self._check_alive()
        if self._task is None:
            raise RuntimeError("no episode is running: call reset first")
        try:
            action = parse_action(text)
        except InvalidAction as error:
            return self._refuse(str(error))
        for element_id in action.ids:
            if element_id not in self._bids:
                return self._refuse(f"there is no element {element_id!r} on the page")
        bids = [self._bids[element_id] for element_id in action.ids]
        acted_on = tuple(self._boxes[bid] for bid in bids if bid in self._boxes)
        command = format_action(action.with_ids(self._bids))
        payload = await self._ask(lambda client: client.step(command))
        self._history.append(format_action(action))
        with self._reading():
            answer = read_step(payload, screenshot=self._screenshot)
            self._observation = self._observe(self._task, answer, self._observation.goal)
        if answer.done:
            self._task = None
        return StepResult(
            observation=self._observation,
            reward=answer.reward,
            done=answer.done,
            success=answer.reward > 0,
            acted_on=() if answer.error else acted_on,
            info={} if answer.raw_reward is None else {"raw_reward": answer.raw_reward},
        )

    def demonstrate(self) -> str:
        """Return the action of the task's scripted solver; see `Demonstrator.demonstrate`."""
        solver = SOLVERS.get(self._task.name.removeprefix("miniwob.")) if self._task else None
        if solver is None:
            return ""
        try:
            return format_action(solver(self._observation.goal, self._elements, len(self._history)))
        except LookupError:
            return ""

    async def close(self) -> None:
        """End the session; fine to call twice, or after an EnvError."""
        client, self._client = self._client, None
        self._dead = self._dead or "it was closed"
        self._task = None
        if client is None:
            return
        try:
            # A server that hangs would hold the closing handshake for long.
            await asyncio.wait_for(client.close(), CLOSE_DEADLINE_S)
        except (OSError, TimeoutError):
            return  # the connection is gone, which is what was asked for

    async def _ask(self, call: Callable[[Any], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Await one answer of the server within the deadline, or be dead."""
        self._check_alive()
        if self._client is None:
            make_client = await asyncio.to_thread(client_class)
            self._client = make_client(
                base_url=self.base_url,
                connect_timeout_s=self.deadline_s,
                message_timeout_s=2 * self.deadline_s,  # the deadline is ours
                headers=self.headers,
            )
        try:
            async with asyncio.timeout(self.deadline_s):
                return await call(self._client)
        except asyncio.CancelledError:
            self._dead = "a call was cancelled"  # its answer would be read as the next one's
            raise
        except TimeoutError as error:
            raise self._die(f"no answer within {self.deadline_s:g} s") from error
        except Exception as error:
            # OpenEnv turns every error of the server into one RuntimeError, and the
            # transport has many of its own: an unknown task alone is not the machinery's.
            if unknown := no_such_task(str(error).removeprefix("Server error: ")):
                raise TaskError(unknown) from error
            raise self._die(describe(error)) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Be dead if the answer that is read here is no outcome of an episode."""
        try:
            yield
        except TaskError:
            raise
        except ValueError as error:
            raise self._die(str(error)) from error

    def _die(self, reason: str) -> EnvError:
        self._dead = reason
        return EnvError(f"browser server {self.base_url}: {reason}")

    def _check_alive(self) -> None:
        if self._dead:
            raise EnvError(f"this environment is dead ({self._dead}): take a fresh one")

    def _observe(self, task: Task, answer: Answer, goal: str) -> Observation:
        elements = simplify_axtree(answer.axtree_txt)
        self._boxes = answer.boxes
        self._bids = {page_id(task, element.id): element.id for element in elements if element.id}
        elements = [
            dataclasses.replace(element, id=page_id(task, element.id)) if element.id else element
            for element in elements
        ]
        self._elements = elements
        page = "\n".join(map(str, elements))
        error = _one_line(task, answer.error)
        return Observation(
            messages=page_messages(goal, page, self._history, error),
            goal=goal,
            page=page,
            url=answer.url,
            error=error,
            actions=_possible_actions(elements, goal),
            screenshot=answer.screenshot,
        )

    def _refuse(self, error: str) -> StepResult:
        old = self._observation
        page = old.page
        messages = page_messages(old.goal, page, self._history, error)
        self._observation = dataclasses.replace(old, messages=messages, error=error)
        return StepResult(
            self._observation, reward=0.0, done=False, valid_action=False, info={"raw_reward": 0.0}
        )


def _possible_actions(elements: list[Element], goal: str) -> tuple[str, ...]:
    """Return a click for every element, and for text fields each word quoted in the goal."""
    words = re.findall(r'"([^"]+)"', goal)
    actions = []
    for element in elements:
        if element.id:
            actions.append(f"click({element.id!r})")
            if element.role in TEXT_ROLES:
                actions += [f"fill({element.id!r}, {word!r})" for word in words]
    return tuple(actions)


def _one_line(task: Task, error: str) -> str:
    """Return the first line of a server's error, with the ids that the model knows."""
    line = error.strip().splitlines()[0] if error.strip() else ""
    line = _MENTIONED_BID.sub(lambda m: f"{m[1]}{m[2]}{page_id(task, m[3])}{m[2]}", line)
    return line if len(line) <= MAX_ERROR_LENGTH else line[:MAX_ERROR_LENGTH] + "..."
