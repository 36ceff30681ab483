"""A check that an environment keeps the contract; its errors name the likely cause."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from envs.base import Demonstrator, Env, Observation, Refuser, StepResult, Task

INVALID_TEXT = "I think that I should press the button."
PNG = b"\x89PNG\r\n\x1a\n"


async def check_env(
    make_env: Callable[[], Env], task: Task, *, good_actions: Sequence[str] | None = None
) -> None:
    """Play a few episodes and check the contract of `envs.base.Env`.

    Args:
        make_env: makes a fresh environment.
        task: a task that it serves.
        good_actions: texts that solve the task in this order; with them the end of an episode
            is checked as well.

    Raises:
        AssertionError: the contract is broken; the message says where, and the likely cause.
    """
    env = make_env()
    _check(isinstance(env, Env), "reset, step or close is missing: see envs.base.Env")
    try:
        first = await env.reset(task)
        _check_observation(first)
        _check(
            first.screenshot is None,
            "an observation has a screenshot that was not asked for: pass `screenshot` on",
        )
        again = await env.reset(task)
        _check(
            again == first,
            "two resets with the same task gave different observations: the seed does not "
            "reach everything that is random, or an episode leaves something behind",
        )
        other = make_env()
        try:
            fresh = await other.reset(task)
        finally:
            await other.close()
        _check(
            fresh == first,
            "a fresh environment and a used one gave different observations for one task: an "
            "episode leaves something behind, or the seed of the process is used",
        )
        if isinstance(env, Demonstrator):
            action = env.demonstrate()
            _check(isinstance(action, str), f"demonstrate must return a str, got {action!r}")
        await _check_invalid_text(env, first)
        await _check_screenshot(env, task)
        if good_actions is not None:
            await _check_episode(env, task, good_actions)
    finally:
        await env.close()
    try:
        await env.close()
    except Exception as error:
        raise AssertionError(f"close must be safe to call twice, got {error!r}") from error


async def _check_invalid_text(env: Env, before: Observation) -> None:
    refuse = env.refusals() if isinstance(env, Refuser) else None
    result = await env.step(INVALID_TEXT)
    _check(
        refuse is None or refuse(INVALID_TEXT) == result,
        "refusals() and step() do not refuse an invalid action alike",
    )
    _check_result(result)
    after = result.observation
    _check(
        not result.valid_action,
        "prose was taken for an action: `valid_action` must be False for text that is not one",
    )
    _check(not result.done and result.reward == 0, "an invalid action must change nothing")
    _check(after.page == before.page, "an invalid action changed the page")
    _check(after.error != "", "an invalid action must say why in `observation.error`")
    _check(
        any(after.error in message["content"] for message in after.messages),
        "the error is not in the messages: the model cannot learn from what it cannot read",
    )


async def _check_screenshot(env: Env, task: Task) -> None:
    screenshot = (await env.reset(task, screenshot=True)).screenshot
    _check(
        screenshot is None or (isinstance(screenshot, bytes) and screenshot.startswith(PNG)),
        "a screenshot must be the bytes of a PNG, or None if none can be taken",
    )


async def _check_episode(env: Env, task: Task, good_actions: Sequence[str]) -> None:
    await env.reset(task)
    for i, text in enumerate(good_actions):
        result = await env.step(text)
        _check_result(result)
        _check(
            result.valid_action,
            f"the good action {text!r} was called invalid: {result.observation.error}",
        )
        last = i == len(good_actions) - 1
        _check(
            result.done == last,
            f"`done` must be {last} after good action {i + 1} of {len(good_actions)}, got "
            f"{result.done}",
        )
    _check(
        result.success and result.reward > 0,
        "the good actions did not solve the task: `success` and `reward` of the last step are "
        f"{result.success} and {result.reward}",
    )
    try:
        await env.step(good_actions[-1])
    except RuntimeError:
        pass
    else:
        _check(False, "a step after the end must raise RuntimeError: its reward would count twice")
    try:
        await env.reset(task)
    except RuntimeError as error:
        raise AssertionError(
            f"a refused step after the end killed the environment ({error}): it was the "
            "caller's mistake, not an infrastructure failure"
        ) from error


def _check_observation(observation: Observation) -> None:
    _check(
        isinstance(observation, Observation),
        f"expected an Observation, got {type(observation).__name__}",
    )
    messages = observation.messages
    _check(isinstance(messages, tuple) and len(messages) > 0, "messages must be a non-empty tuple")
    for message in messages:
        _check(
            set(message) == {"role", "content"}
            and message["role"] in ("system", "user", "assistant")
            and isinstance(message["content"], str),
            f"a message must have a 'role' and a 'content' of type str, got {message!r}",
        )
    _check(
        messages[-1]["role"] == "user",
        f"the last message must be the user's, got {messages[-1]['role']!r}: a chat template "
        "would let the model continue its own message",
    )
    for name in ("goal", "page", "url", "error"):
        value = getattr(observation, name)
        _check(isinstance(value, str), f"{name} must be a str, got {value!r}")
    _check(
        isinstance(observation.actions, tuple)
        and all(isinstance(text, str) for text in observation.actions),
        f"actions must be a tuple of str, got {observation.actions!r}",
    )


def _check_result(result: StepResult) -> None:
    _check(isinstance(result, StepResult), f"expected a StepResult, got {type(result).__name__}")
    _check_observation(result.observation)
    for name in ("done", "success", "valid_action"):
        value = getattr(result, name)
        _check(isinstance(value, bool), f"{name} must be a bool, got {value!r}")
    _check(
        isinstance(result.reward, float) and math.isfinite(result.reward),
        f"reward must be a finite float, got {result.reward!r}",
    )


def _check(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)
