"""BrowserGym over OpenEnv as an `Env`: the page as messages, the action as text."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from envs.base import Box, EnvError, Observation, Refusals, StepResult, Task, TaskError
from envs.browser.actions import (
    EXTRA_ACTIONS,
    Action,
    InvalidAction,
    format_action,
    page_actions,
    parse_action,
    possible_actions,
)
from envs.browser.connection import (
    ServerError,
    client_class,
    describe_failure,
    server_url,
    token_headers,
)
from envs.browser.drawings import element_under, with_drawings
from envs.browser.element_ids import page_ids, with_page_ids
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.page_text import Element, format_page, simplify_axtree
from envs.browser.prompts import ACTION, Prompt
from envs.browser.protocol import Response, read_reset, read_step, unknown_task

CLOSE_DEADLINE_S = 5.0
Read = TypeVar("Read")


class BrowserEnv:
    """One WebSocket session with a browser server, connected at the first reset.

    Element ids are renumbered per task, seed and variant, see `envs.browser.element_ids`. An
    action that names an id that is not on the page never reaches the server. The server is either
    `envs.browser.server` or OpenEnv's own BrowserGym server (`envs.browser.protocol` lists the
    differences).

    Args:
        base_url: address of the server, `http://host:port`, or of a Hugging Face Space's page.
        deadline_s: seconds that a reset or a step may take, queueing included. The first reset
            also connects, and a sleeping Space delays that by minutes.
        headers: HTTP headers of the connection; None for those of
            `envs.browser.connection.token_headers`.
        partial_reward: True to reward MiniWoB's tasks as MiniWoB does, which pays for a part of
            some of them: the raw reward, but 0 for one below 0, so that a wrong answer costs no
            more than none. False for 1 for the whole task, else 0. Other tasks reward themselves.
        prompt: the answer format: builds the chats, and reads the completions.
    """

    def __init__(
        self,
        base_url: str,
        *,
        deadline_s: float = 30.0,
        headers: dict[str, str] | None = None,
        partial_reward: bool = False,
        prompt: Prompt = ACTION,
    ):
        self.base_url = server_url(base_url)
        self.prompt = prompt
        self.deadline_s = deadline_s
        self.headers = token_headers(self.base_url) if headers is None else headers
        self._partial_reward = partial_reward
        self._client: Any = None
        self._dead = ""
        self._task: Task | None = None  # None: no episode is running
        self._screenshot = False
        self._history: list[str] = []
        self._bids: dict[str, str] = {}
        self._boxes: dict[str, Box] = {}  # by the server's ids
        self._elements: list[Element] = []  # of the current page, with the ids the model reads
        self._by_id: dict[str, Element] = {}
        self._observation = Observation(messages=())
        self._allowed: tuple[str, ...] = ()  # actions that only some tasks have
        self._extra: tuple[str, ...] = ()  # those of this page
        self._demonstration = ""
        self._info: dict[str, Any] = {}  # of the newest response

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode; see `Env.reset`.

        Args:
            task: a MiniWoB task such as `click-test`, with or without the prefix `miniwob.`.
            screenshot: True to include a screenshot in every observation of this episode.
                Without screenshots the finished page has no text, since nothing acts on it.

        Raises:
            TaskError: the server does not have this task, or responds with another one.
            EnvError: the infrastructure failed; this environment is dead from then on.
        """
        self._task, self._history, self._screenshot = None, [], screenshot
        name = task.name.removeprefix("miniwob.")
        options = {"screenshot": screenshot, "final_page": screenshot}

        def read(payload: Any) -> Observation:
            response = read_reset(payload, name, screenshot=screenshot)
            self._allowed = tuple(name for name in response.actions if name in EXTRA_ACTIONS)
            return self._observe(task, response, response.goal)

        self._observation = await self._request(
            lambda client: client.reset(task_name=name, seed=task.seed, **options), read
        )
        self._task = task
        return self._observation

    async def step(self, text: str) -> StepResult:
        """Execute the action that the model wrote; see `Env.step`.

        Raises:
            RuntimeError: no episode is running: the last one is over, or none was started.
            EnvError: the infrastructure failed; this environment is dead from then on.
        """
        self._check_alive()
        task = self._task
        if task is None:
            raise RuntimeError("no episode is running: call reset first")
        refused = self.refusals()(text)
        if refused is not None:
            self._observation = refused.observation
            return refused
        action = self.prompt.parse(text, self._extra)
        boxes = self.boxes
        under = (element_under(boxes, *point) for point in action.points)
        acted_on = tuple(boxes[each] for each in (*action.ids, *under) if each in boxes)
        command = format_action(action.with_ids(self._bids))
        history = [*self._history, format_action(action)]

        def read(payload: Any) -> Response:
            name = task.name.removeprefix("miniwob.")
            response = read_step(payload, name, screenshot=self._screenshot)
            self._history = history
            self._observation = self._observe(task, response, self._observation.goal)
            return response

        response = await self._request(lambda client: client.step(command), read)
        if response.done:
            self._task = None
        return StepResult(
            observation=self._observation,
            reward=self._reward(response),
            done=response.done,
            success=response.success,
            acted_on=() if response.error else acted_on,
            info=self._info,
        )

    def demonstrate(self) -> str:
        """Return the completion of the task's scripted solver; see `Demonstrator`."""
        if self._task is not None and self._demonstration:
            return self.write_action(self._demonstration)
        solver = SOLVERS.get(self._task.name.removeprefix("miniwob.")) if self._task else None
        if solver is None:
            return ""
        try:
            action = solver(self._observation.goal, self._elements, len(self._history))
        except (LookupError, ValueError):  # a number, say, that is not one
            return ""
        return self.write_action(format_action(action))

    def renumbered(self, text: str) -> str:
        """Return an action of the task's variant 0 with the ids of this page; see `Renumberer`."""
        if self._task is None or not self._task.variant:
            return text
        first = page_ids(dataclasses.replace(self._task, variant=0), self._bids.values())
        ids = {first[bid]: element_id for element_id, bid in self._bids.items()}
        return self._with_ids(text, ids) or text

    def read_action(self, text: str) -> tuple[str, str]:
        """Return the action and the thought of a completion; see `Formatter`."""
        try:
            return format_action(self.prompt.parse(text, self._extra)), self.prompt.thought(text)
        except InvalidAction:
            return "", ""

    def write_action(self, action: str, thought: str = "") -> str:
        """Return the completion for an action; see `Formatter`.

        Without a thought it is what is done to which element, `Next: click button 'Add'.`
        """
        try:
            parsed = parse_action(action, self._extra)
        except InvalidAction:
            return action
        try:
            return self.prompt.write(parsed, thought or self._plan(parsed))
        except ValueError as error:
            if not thought:  # the page has a text that is not for thoughts
                return self.prompt.write(parsed)
            raise TaskError(f"cannot say what a demonstration thinks: {error}") from error

    def refusals(self) -> Refusals:
        """Return the function that refuses invalid actions on this page; see `Refuser`."""
        old, bids, history, extra = self._observation, self._bids, self._history, self._extra
        info = self._info | {"raw_reward": 0.0}
        prompt = self.prompt

        def refuse(text: str) -> StepResult | None:
            error = prompt.why_invalid(text, bids, extra)
            if not error:
                return None
            messages = prompt.messages(old.goal, old.page, history, error, extra)
            page = dataclasses.replace(old, messages=messages, error=error)
            return StepResult(page, 0.0, done=False, valid_action=False, info=info)

        return refuse

    @property
    def boxes(self) -> dict[str, Box]:
        """Rectangles of the page's elements on the screenshot, by the ids that the model reads."""
        return {i: self._boxes[bid] for i, bid in self._bids.items() if bid in self._boxes}

    async def close(self) -> None:
        """End the session; safe to call twice, or after an EnvError."""
        client, self._client = self._client, None
        self._dead = self._dead or "it was closed"
        self._task = None
        if client is not None:
            # The closing handshake with a server that hangs would take long; an error means that
            # the connection is gone, as wanted.
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(client.close(), CLOSE_DEADLINE_S)

    async def _request(
        self, call: Callable[[Any], Awaitable[dict[str, Any]]], read: Callable[[Any], Read]
    ) -> Read:
        """Await one response of the server and read it; a failure ends the session.

        Args:
            call: sends the request, called with the client.
            read: reads the response, in a thread: the text is foreign and may be long.
        """
        self._check_alive()
        if self._client is None:
            self._client = await self._connect()
        try:
            async with asyncio.timeout(self.deadline_s):
                payload = await call(self._client)
            return await asyncio.to_thread(read, payload)
        except asyncio.CancelledError:
            self._dead = "a call was cancelled"  # its response would be taken for the next one
            raise
        except TimeoutError as error:
            raise self._fail(f"no response within {self.deadline_s:g} s") from error
        except TaskError:
            raise
        except Exception as error:
            # The transport has many errors of its own, and a response that cannot be read must not
            # end a run: only an unknown task is not an infrastructure failure.
            if isinstance(error, ServerError) and (unknown := unknown_task(str(error))):
                raise TaskError(unknown) from error
            raise self._fail(describe_failure(error)) from error

    async def _connect(self) -> Any:
        """Return the client of a new session; it connects when it is first called."""
        make_client = await asyncio.to_thread(client_class)
        return make_client(
            base_url=self.base_url, connect_timeout_s=self.deadline_s, headers=self.headers
        )

    def _fail(self, reason: str) -> EnvError:
        self._dead = reason
        return EnvError(f"browser server {self.base_url}: {reason}")

    def _check_alive(self) -> None:
        if self._dead:
            raise EnvError(f"this environment is dead ({self._dead}): take a fresh one")

    def _reward(self, response: Response) -> float:
        of_miniwob = response.success_browsergym is not None
        if self._partial_reward and of_miniwob and response.raw_reward is not None:
            return max(response.raw_reward, 0.0)
        return response.reward

    def _observe(self, task: Task, response: Response, goal: str) -> Observation:
        elements = simplify_axtree(response.axtree_txt, response.names)
        elements = with_drawings(elements, response.drawings, response.places)
        self._extra = page_actions(self._allowed, (element.role for element in elements))
        self._boxes = response.boxes
        info = {n: getattr(response, n) for n in ("raw_reward", "success_browsergym")}
        self._info = {name: value for name, value in info.items() if value is not None}
        ids = page_ids(task, (element.id for element in elements if element.id))
        self._bids = {ids[bid]: bid for bid in ids}
        elements = [
            dataclasses.replace(element, id=ids[element.id]) if element.id else element
            for element in elements
        ]
        self._elements = elements
        self._by_id = {element.id: element for element in elements if element.id}
        page = format_page(elements, response.left_out)
        self._demonstration = self._with_ids(response.demonstration, ids)
        error = with_page_ids(task, response.error)
        actions = tuple(possible_actions(elements, goal))
        if self.prompt is not ACTION:
            actions = tuple(map(self.write_action, actions))
        return Observation(
            messages=self.prompt.messages(goal, page, self._history, error, self._extra),
            goal=goal,
            page=page,
            url=response.url,
            error=error,
            actions=actions,
            screenshot=response.screenshot,
            deterministic=response.deterministic,
        )

    def _named(self, action: Action) -> str:
        """Return the elements that an action names or points at, as in `button 'Add'`."""
        under = (element_under(self.boxes, *point) for point in action.points)
        found = [self._by_id[i] for i in (*action.ids, *under) if i in self._by_id]
        return ", ".join(str(dataclasses.replace(each, id="", state="")) for each in found)

    def _plan(self, action: Action) -> str:
        return f"Next: {' '.join(filter(None, (action.name, self._named(action))))}."

    def _with_ids(self, text: str, ids: dict[str, str]) -> str:
        """Return an action with other ids; '' if it is not one, or names an id that has none."""
        try:
            return format_action(parse_action(text, self._extra).with_ids(ids))
        except (InvalidAction, KeyError):
            return ""
