"""What a page stores in one episode is seen in no other one, later or at the same time."""

import asyncio
import re

import pytest

from envs.base import Task
from envs.browser.env import BrowserEnv

pytestmark = pytest.mark.browser

STATE = Task("state", 0)
STORED = "cookie localStorage sessionStorage name database caches worker files shared"
SESSIONS = 4  # on two browsers


@pytest.fixture
async def envs(sites):
    envs = [BrowserEnv(sites.url) for _ in range(SESSIONS)]
    yield envs
    await asyncio.gather(*(env.close() for env in envs))


async def found(env, page):
    """Return what the page has found of earlier visits, and the number of its cached response."""
    while not (report := re.search(r"Kept: (.*?)\. Visit (\d+)", page)):
        page = (await env.step("noop()")).observation.page  # no server knows when it is ready
    return report.groups()


async def start(env):
    return await found(env, (await env.reset(STATE)).page)


async def click(env, name):
    page = (await env.step("noop()")).observation.page
    button = re.search(rf"^button '{name}' \[(\w+)\]", page, re.MULTILINE)
    kept, _ = await found(env, (await env.step(f"click('{button[1]}')")).observation.page)
    return kept


async def test_a_later_episode_sees_nothing(envs):
    env = envs[0]
    assert (await start(env))[0] == ""
    assert await click(env, "Store") == STORED
    assert (await start(env))[0] == ""


async def test_concurrent_episodes_see_nothing(envs):
    await asyncio.gather(*map(start, envs))
    assert await click(envs[0], "Store") == STORED
    assert await asyncio.gather(*(click(env, "Look") for env in envs[1:])) == [""] * (SESSIONS - 1)
    assert (await start(envs[1]))[0] == ""


async def test_no_episode_has_the_response_that_another_one_cached(envs):
    visits = [await start(env) for env in [envs[0], *envs]]
    assert len({number for _, number in visits}) == len(visits)
