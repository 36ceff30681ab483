"""The scripted environment keeps every promise; each broken one below breaks one."""

import dataclasses
import random

import pytest

from envs.base import EnvError, Task, TaskError
from envs.checker import check_env
from envs.scripted import TASKS, ScriptedEnv


async def solution(task):
    observation = await ScriptedEnv().reset(task)
    words = observation.goal.removeprefix("Click ").removesuffix(".").split(" and then ")
    lines = observation.page.splitlines()
    numbers = [line[1:3] for word in words for line in lines if f"'{word}'" in line]
    return [f"click('{number}')" for number in numbers]


@pytest.mark.parametrize("name", TASKS)
async def test_scripted_env_keeps_every_promise(name):
    task = Task(name, 4)
    good_actions = await solution(task)
    assert len(good_actions) == TASKS[name]
    await check_env(ScriptedEnv, task, good_actions=good_actions)


async def test_scripted_env_fails_where_told():
    env = ScriptedEnv(fail_at=2)
    await env.reset(Task("click-word", 0))
    for _ in range(2):
        with pytest.raises(EnvError):
            await env.step("noop()")
    with pytest.raises(TaskError, match="click-word"):
        await ScriptedEnv().reset(Task("click-wrd", 0))


async def test_scripted_env_wrong_word():
    env = ScriptedEnv()
    observation = await env.reset(Task("click-two-words", 0))
    right = await solution(Task("click-two-words", 0))
    wrong = next(text for text in observation.actions if text not in right)
    result = await env.step(wrong)
    assert (result.done, result.success, result.reward) == (True, False, 0.0)


def observe(**changes):
    """An environment whose observations are changed."""

    class Broken(ScriptedEnv):
        def _observe(self, error):
            return dataclasses.replace(super()._observe(error), **changes)

    return Broken


def result(only_valid=None, **changes):
    """An environment whose step results are changed, all or those of (in)valid actions."""

    class Broken(ScriptedEnv):
        async def step(self, text):
            made = await super().step(text)
            if only_valid is None or made.valid_action == only_valid:
                made = dataclasses.replace(made, **changes)
            return made

    return Broken


class Random(ScriptedEnv):
    async def reset(self, task, *, screenshot=False):
        made = await super().reset(task)
        return dataclasses.replace(made, goal=str(random.random()))


class Remembers(ScriptedEnv):
    made = 0

    def __init__(self):
        super().__init__()
        Remembers.made += 1
        self.number = Remembers.made

    async def reset(self, task, *, screenshot=False):
        return dataclasses.replace(await super().reset(task), goal=str(self.number))


class Moves(ScriptedEnv):
    async def step(self, text):
        made = await super().step(text)
        page = made.observation.page + "\nmoved"
        return dataclasses.replace(
            made, observation=dataclasses.replace(made.observation, page=page)
        )


class Mumbles(ScriptedEnv):
    def _observe(self, error):
        made = super()._observe("")
        return dataclasses.replace(made, error=error)


class StepsOn(ScriptedEnv):
    async def step(self, text):
        if not self._left:
            return self.last
        self.last = await super().step(text)
        return self.last


class DiesOfIt(ScriptedEnv):
    async def step(self, text):
        if not self._left:
            self._dead = True
        return await super().step(text)


class ClosesOnce(ScriptedEnv):
    async def close(self):
        if self.closed:
            raise OSError("gone")
        await super().close()


class NoClose:
    reset = ScriptedEnv.reset
    step = ScriptedEnv.step

    def __init__(self):
        self.inner = ScriptedEnv()


ASSISTANT = ({"role": "assistant", "content": "click('9')"},)
BROKEN = {
    "last message must be the user's": observe(messages=ASSISTANT),
    "a message must be": observe(messages=({"role": "bot", "content": ""},)),
    "messages must be a full tuple": observe(messages=()),
    "page must be a text": observe(page=None),
    "actions must be a tuple": observe(actions=["noop()"]),
    "a picture nobody asked for": observe(screenshot=b"\x89PNG\r\n\x1a\n"),
    "two resets with the same task": Random,
    "a fresh environment and a used one": Remembers,
    "prose was taken for an action": result(valid_action=True),
    "an invalid action must change nothing": result(False, reward=0.5),
    "changed the page": Moves,
    "must say why": observe(error=""),
    "the error is not in the messages": Mumbles,
    "reward must be a finite float, got nan": result(reward=float("nan")),
    "reward must be a finite float, got 1": result(reward=1),
    "done must be a bool": result(done=0),
    "was called invalid": result(True, valid_action=False),
    "`done` must be True after good action 1 of 1": result(True, done=False),
    "did not solve the task": result(True, success=False),
    "a step after the end was answered": StepsOn,
    "a refused step after the end killed": DiesOfIt,
    "closing twice": ClosesOnce,
}


@pytest.mark.parametrize("message", BROKEN)
async def test_each_broken_promise_is_seen(message):
    task = Task("click-word", 4)
    with pytest.raises(AssertionError, match=message):
        await check_env(BROKEN[message], task, good_actions=await solution(task))


async def test_a_picture_that_is_none():
    class Broken(ScriptedEnv):
        async def reset(self, task, *, screenshot=False):
            made = await super().reset(task)
            return dataclasses.replace(made, screenshot=b"GIF" if screenshot else None)

    with pytest.raises(AssertionError, match="bytes of a PNG"):
        await check_env(Broken, Task("click-word", 0))
