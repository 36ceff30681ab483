"""check_env passes the scripted environment, and names what each broken one breaks."""

import dataclasses
import random

import pytest

from envs.base import Demonstrator, EnvError, Task, TaskError
from envs.checker import check_env
from envs.scripted import TASKS, ScriptedEnv


async def solution(task):
    observation = await ScriptedEnv().reset(task)
    words = observation.goal.removeprefix("Click ").removesuffix(".").split(" and then ")
    lines = observation.page.splitlines()
    numbers = [line[1:3] for word in words for line in lines if f"'{word}'" in line]
    return [f"click('{number}')" for number in numbers]


@pytest.mark.parametrize("name", TASKS)
async def test_scripted_env_keeps_the_contract(name):
    task = Task(name, 4)
    good_actions = await solution(task)
    assert len(good_actions) == TASKS[name]
    await check_env(ScriptedEnv, task, good_actions=good_actions)


async def test_scripted_env_fails_at_the_given_call():
    env = ScriptedEnv(fail_at=2)
    await env.reset(Task("click-word", 0))
    for _ in range(2):
        with pytest.raises(EnvError):
            await env.step("noop()")
    with pytest.raises(TaskError, match="click-word"):
        await ScriptedEnv().reset(Task("click-wrd", 0))


async def test_the_scripted_env_demonstrates_its_solution():
    task = Task("click-two-words", 4)
    env = ScriptedEnv()
    assert isinstance(env, Demonstrator)
    assert env.demonstrate() == ""
    await env.reset(task)
    done = []
    while action := env.demonstrate():
        done.append(action)
        await env.step(action)
    assert done == await solution(task)


async def test_a_wrong_word_ends_the_episode():
    env = ScriptedEnv()
    observation = await env.reset(Task("click-two-words", 0))
    right = await solution(Task("click-two-words", 0))
    wrong = next(text for text in observation.actions if text not in right)
    result = await env.step(wrong)
    assert (result.done, result.success, result.reward) == (True, False, 0.0)


def observe(**changes):
    """An environment whose observations have these fields changed."""

    class Broken(ScriptedEnv):
        def _observe(self, error):
            return dataclasses.replace(super()._observe(error), **changes)

    return Broken


def result(only_valid=None, **changes):
    """An environment whose step results are changed; all, or only those of (in)valid actions."""

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


class HidesTheError(ScriptedEnv):
    def _observe(self, error):
        made = super()._observe("")
        return dataclasses.replace(made, error=error)


class StepsPastTheEnd(ScriptedEnv):
    async def step(self, text):
        if not self._left:
            return self.last
        self.last = await super().step(text)
        return self.last


class DiesAfterTheEnd(ScriptedEnv):
    async def step(self, text):
        if not self._left:
            self._dead = True
        return await super().step(text)


class ClosesOnce(ScriptedEnv):
    async def close(self):
        if self.closed:
            raise OSError("gone")
        await super().close()


class NoDemonstration(ScriptedEnv):
    def demonstrate(self):
        return None


class NoClose:
    reset = ScriptedEnv.reset
    step = ScriptedEnv.step


ASSISTANT = ({"role": "assistant", "content": "click('9')"},)
BROKEN = {
    "reset, step or close is missing": NoClose,
    "last message must be the user's": observe(messages=ASSISTANT),
    "a message must have": observe(messages=({"role": "bot", "content": ""},)),
    "messages must be a non-empty tuple": observe(messages=()),
    "page must be a str": observe(page=None),
    "actions must be a tuple": observe(actions=["noop()"]),
    "a screenshot that was not asked for": observe(screenshot=b"\x89PNG\r\n\x1a\n"),
    "two resets with the same task": Random,
    "a fresh environment and a used one": Remembers,
    "prose was taken for an action": result(valid_action=True),
    "an invalid action must change nothing": result(False, reward=0.5),
    "changed the page": Moves,
    "must say why": observe(error=""),
    "the error is not in the messages": HidesTheError,
    "reward must be a finite float, got nan": result(reward=float("nan")),
    "reward must be a finite float, got 1": result(reward=1),
    "done must be a bool": result(done=0),
    "was called invalid": result(True, valid_action=False),
    "`done` must be True after good action 1 of 1": result(True, done=False),
    "did not solve the task": result(True, success=False),
    "a step after the end must raise": StepsPastTheEnd,
    "a refused step after the end killed": DiesAfterTheEnd,
    "close must be safe to call twice": ClosesOnce,
    "demonstrate must return a str, got None": NoDemonstration,
}


@pytest.mark.parametrize("message", BROKEN)
async def test_each_broken_promise_is_found(message):
    task = Task("click-word", 4)
    with pytest.raises(AssertionError, match=message):
        await check_env(BROKEN[message], task, good_actions=await solution(task))


async def test_a_screenshot_that_is_not_a_png():
    class Broken(ScriptedEnv):
        async def reset(self, task, *, screenshot=False):
            made = await super().reset(task)
            return dataclasses.replace(made, screenshot=b"GIF" if screenshot else None)

    with pytest.raises(AssertionError, match="bytes of a PNG"):
        await check_env(Broken, Task("click-word", 0))
