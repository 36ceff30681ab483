"""What every environment must promise, as a check that names the likely cause."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from envs.base import Env, Observation, StepResult, Task

INVALID_TEXT = "I think that I should press the button."
PNG = b"\x89PNG\r\n\x1a\n"


async def check_env(
    make_env: Callable[[], Env], task: Task, *, good_actions: Sequence[str] | None = None
) -> None:
    """Play a few episodes and hold the environment to the contract of `envs.base.Env`.

    Args:
        make_env: makes a fresh environment.
        task: a task that it serves.
        good_actions: texts that solve the task in order, if they are known: then the end of
            an episode is checked as well.

    Raises:
        AssertionError: a promise is broken; the message says which, and the likely cause.
    """
    env = make_env()
    try:
        _check(isinstance(env, Env), "reset, step or close is missing: see envs.base.Env")
        first = await env.reset(task)
        _check_observation(first)
        _check(
            first.screenshot is None,
            "an observation holds a picture nobody asked for: pass `screenshot` on",
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
            "a fresh environment and a used one gave different observations of one task: an "
            "episode leaves something behind, or the seed of the process is used",
        )
        await _check_invalid_text(env, first)
        await _check_picture(env, task)
        if good_actions is not None:
            await _check_episode(env, task, good_actions)
    finally:
        await env.close()
    try:
        await env.close()
    except Exception as error:
        raise AssertionError(f"closing twice must be fine, got {error!r}") from error


async def _check_invalid_text(env: Env, before: Observation) -> None:
    result = await env.step(INVALID_TEXT)
    _check_result(result)
    after = result.observation
    _check(
        not result.valid_action,
        "prose was taken for an action: `valid_action` must be False for text that is none",
    )
    _check(not result.done and result.reward == 0, "an invalid action must change nothing")
    _check(after.page == before.page, "an invalid action changed the page")
    _check(after.error != "", "an invalid action must say why in `observation.error`")
    _check(
        any(after.error in message["content"] for message in after.messages),
        "the error is not in the messages: the model cannot learn from what it cannot read",
    )


async def _check_picture(env: Env, task: Task) -> None:
    picture = (await env.reset(task, screenshot=True)).screenshot
    _check(
        picture is None or (isinstance(picture, bytes) and picture.startswith(PNG)),
        "a screenshot must be the bytes of a PNG, or None where there is none to take",
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
        pass  # refused, as it must be
    else:
        _check(False, "a step after the end was answered: its reward would be counted again")
    try:
        await env.reset(task)
    except RuntimeError as error:
        raise AssertionError(
            f"a refused step after the end killed the environment ({error}): that was the "
            "caller's mistake, not the machinery's"
        ) from error


def _check_observation(observation: Observation) -> None:
    _check(
        isinstance(observation, Observation),
        f"expected an Observation, got {type(observation).__name__}",
    )
    messages = observation.messages
    _check(isinstance(messages, tuple) and len(messages) > 0, "messages must be a full tuple")
    for message in messages:
        _check(
            set(message) == {"role", "content"}
            and message["role"] in ("system", "user", "assistant")
            and isinstance(message["content"], str),
            f"a message must be {{'role', 'content'}} with texts, got {message!r}",
        )
    _check(
        messages[-1]["role"] == "user",
        f"the last message must be the user's, got {messages[-1]['role']!r}: a chat template "
        "would let the model continue its own answer",
    )
    for name in ("goal", "page", "url", "error"):
        value = getattr(observation, name)
        _check(isinstance(value, str), f"{name} must be a text, got {value!r}")
    _check(
        isinstance(observation.actions, tuple)
        and all(isinstance(text, str) for text in observation.actions),
        f"actions must be a tuple of texts, got {observation.actions!r}",
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


def _check(promise: bool, message: str) -> None:
    if not promise:
        raise AssertionError(message)
