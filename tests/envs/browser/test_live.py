"""A browser window in this process as an environment."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from envs.base import EnvError, Task, TaskError
from envs.browser.live import LiveEnv, open_live
from envs.browser.server.processes import marked
from envs.browser.url_task import UrlTask

TODO = Path(__file__).parents[3] / "examples" / "sites" / "todo" / "tasks.py"


def _mark(env: LiveEnv) -> str:
    return f"GRPO_BROWSER={env.session.browser._mark}"


def test_it_plays_the_tasks_of_a_file() -> None:
    async def play() -> list[bool]:
        async with open_live(TODO) as env:
            observation = await env.reset(Task("AddTodo", 3), screenshot=True)
            assert "button 'Add'" in observation.page
            assert observation.screenshot is not None
            assert env.boxes
            results = [await env.step(env.demonstrate()) for _ in range(2)]
            return [result.success for result in results]

    assert asyncio.run(play()) == [False, True]


def test_an_unknown_task_leaves_it_usable() -> None:
    async def play() -> str:
        async with open_live(TODO) as env:
            with pytest.raises(TaskError, match="unknown task 'Nothing'"):
                await env.reset(Task("Nothing", 0))
            return (await env.reset(Task("AddTodo", 0))).page

    assert "textbox 'Text'" in asyncio.run(play())


def test_a_browser_that_dies_is_an_error_of_the_environment() -> None:
    async def play() -> None:
        async with open_live(TODO) as env:
            await env.reset(Task("AddTodo", 0))
            for pid in marked(_mark(env)):
                with suppress(ProcessLookupError):  # it ended with its parent
                    os.kill(pid, signal.SIGKILL)
            with pytest.raises(EnvError, match="browser: "):
                await env.step(env.demonstrate())

    asyncio.run(play())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_its_browser_may_use_every_core() -> None:
    async def play() -> list[set[int]]:
        async with open_live(TODO) as env:
            return [os.sched_getaffinity(pid) for pid in marked(_mark(env))]

    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # as OpenMP does
    try:
        found = asyncio.run(play())
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)
    assert found
    assert all(cores >= before for cores in found)


def test_nothing_is_left_of_it() -> None:
    async def play() -> str:
        async with open_live(TODO) as env:
            await env.reset(Task("AddTodo", 0))
            assert marked(_mark(env))
            return _mark(env)

    assert marked(asyncio.run(play())) == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (UrlTask("todo.html", "Go on."), "site must be an http address"),
        (UrlTask("http://127.0.0.1:1/", "Go on.", allowed_origins=["nothing"]), "allowed origin"),
    ],
)
def test_a_task_that_cannot_be_used(task: UrlTask, message: str) -> None:
    async def play() -> None:
        async with open_live(task):
            raise AssertionError("it was opened")

    with pytest.raises(TaskError, match=message):
        asyncio.run(play())
