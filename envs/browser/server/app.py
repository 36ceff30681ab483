"""Browser tasks as an OpenEnv application: reset, step and state over a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from openenv.core.env_server import (
    Action,
    Environment,
    Observation,
    State,
    create_fastapi_app,
)

from envs.browser.actions import EXTRA_ACTIONS, InvalidAction, parse_action
from envs.browser.limits import MAX_REQUEST
from envs.browser.server.body_limit import BodyLimit
from envs.browser.server.chromium_pool import ChromiumPool
from envs.browser.server.errors import SessionError


class BrowserGymAction(Action):
    """One action as text, in the grammar of `envs.browser.actions`."""

    action_str: str


class BrowserGymObservation(Observation):
    """The page after a reset or a step; `metadata` holds `success`, `raw_reward` and more."""

    goal: str = ""
    axtree_txt: str = ""
    url: str = ""
    screenshot: str | None = None  # base64 of a PNG
    error: str = ""
    last_action_error: bool = False


class BrowserGymState(State):
    """The current episode."""

    task_name: str = ""
    seed: int | None = None


class BrowserGymEnvironment(Environment[BrowserGymAction, BrowserGymObservation, BrowserGymState]):
    """One OpenEnv session, with a page in one of the pool's Chromiums."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, pool: ChromiumPool):
        """Open the session.

        Args:
            pool: Chromiums, of which the session gets one.
        """
        super().__init__()
        self._session = pool.open()
        self._state = BrowserGymState()
        self._last: BrowserGymObservation | None = None

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        task_name: str = "click-test",
        screenshot: bool = False,
        final_page: bool = True,
    ) -> BrowserGymObservation:
        """Start an episode of a task.

        Args:
            seed: seed of the task; None is 0.
            episode_id: returned in the state.
            task_name: name of the task: one of the user's own, of MiniWoB (with or without the
                prefix `miniwob.`), or of another benchmark of BrowserGym.
            screenshot: True to include a screenshot in every observation of the episode.
            final_page: False to leave `axtree_txt` of the finished page empty: it takes time,
                and a policy does not act on it.

        Raises:
            ValueError: an argument has a wrong type or value.
            TaskError: there is no such task, or its own code failed.
            SessionError: the session is lost.
        """
        seed = 0 if seed is None else seed
        if not isinstance(task_name, str):
            raise ValueError(f"task_name must be a string, got {task_name!r}")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r:.80}")
        for name, flag in (("screenshot", screenshot), ("final_page", final_page)):
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be true or false, got {flag!r:.80}")
        # The old episode ends even if the new one fails to start.
        self._last = None
        observation = await self._session.call(
            "reset", task_name, seed, screenshot=screenshot, final_page=final_page
        )
        self._state = BrowserGymState(episode_id=episode_id, task_name=task_name, seed=seed)
        self._last = BrowserGymObservation(**observation)
        return self._last

    async def step_async(
        self, action: BrowserGymAction, timeout_s: float | None = None
    ) -> BrowserGymObservation:
        """Execute one action; text that is not an action sets `error` and leaves the page as it is.

        Raises:
            SessionError: no episode is running, or the session is lost.
        """
        if self._last is None or self._last.done:
            raise SessionError("no episode is running: reset first")
        self._state.step_count += 1
        try:
            parsed = parse_action(action.action_str, EXTRA_ACTIONS)
        except InvalidAction as error:
            update = {"error": str(error), "last_action_error": True, "reward": 0.0}
            unchanged: BrowserGymObservation = self._last.model_copy(update=update)
            return unchanged
        self._last = BrowserGymObservation(**await self._session.call("step", parsed))
        return self._last

    def reset(self, *args: Any, **kwargs: Any) -> BrowserGymObservation:
        """Not supported: the server calls `reset_async`."""
        raise TypeError("await reset_async instead")

    def step(self, *args: Any, **kwargs: Any) -> BrowserGymObservation:
        """Not supported: the server calls `step_async`."""
        raise TypeError("await step_async instead")

    @property
    def state(self) -> BrowserGymState:
        """Name, seed and number of steps of the episode."""
        return self._state

    def close(self) -> None:
        """Close the session's page."""
        self._session.close()


def build_app(pool: ChromiumPool, max_sessions: int) -> FastAPI:
    """Build the application.

    Besides OpenEnv's endpoints (such as `/health`), `/ready` responds with 200 while every browser
    runs, and with 503 otherwise.

    Args:
        pool: Chromiums of the sessions.
        max_sessions: sessions at a time; one more gets the error CAPACITY_REACHED.
    """
    app: FastAPI = create_fastapi_app(
        partial(BrowserGymEnvironment, pool),
        BrowserGymAction,
        BrowserGymObservation,
        max_concurrent_envs=max_sessions,
    )
    app.add_middleware(BodyLimit, limit=MAX_REQUEST)
    lone = asyncio.Lock()

    # A request without a WebSocket opens a session of its own, which `max_sessions` does not count.
    @app.middleware("http")
    async def one_at_a_time(request: Request, respond: Callable[..., Any]) -> Any:
        if request.url.path not in ("/reset", "/step"):
            return await respond(request)
        async with lone:
            return await respond(request)

    # Without a WebSocket every request is a session of its own, so a lone step is a mistake.
    @app.exception_handler(SessionError)
    @app.exception_handler(ValueError)
    def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409 if isinstance(error, SessionError) else 400)

    @app.get("/ready")
    def ready(response: Response) -> dict[str, Any]:
        response.status_code = 200 if pool.ready else 503
        sessions = sum(len(slot.sessions) for slot in pool.slots)
        return {"ready": pool.ready, "browsers": len(pool.slots), "sessions": sessions}

    return app
