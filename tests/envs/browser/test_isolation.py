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


def kept(observation):
    return re.search(r"Kept: (.*?)\.", observation.page)[1]


async def click(env, observation, name):
    button = re.search(rf"^button '{name}' \[(\w+)\]", observation.page, re.MULTILINE)
    return (await env.step(f"click('{button[1]}')")).observation


async def test_a_later_episode_sees_nothing(envs):
    observation = await envs[0].reset(STATE)
    assert kept(observation) == ""
    assert kept(await click(envs[0], observation, "Store")) == STORED
    assert kept(await envs[0].reset(STATE)) == ""


async def test_concurrent_episodes_see_nothing(envs):
    first, *rest = await asyncio.gather(*(env.reset(STATE) for env in envs))
    assert kept(await click(envs[0], first, "Store")) == STORED
    looks = (click(env, seen, "Look") for env, seen in zip(envs[1:], rest, strict=True))
    assert [kept(seen) for seen in await asyncio.gather(*looks)] == [""] * (SESSIONS - 1)
    assert kept(await envs[1].reset(STATE)) == ""


async def test_no_episode_has_the_response_that_another_one_cached(envs):
    observations = [await envs[0].reset(STATE), *[await env.reset(STATE) for env in envs]]
    visits = [re.search(r"Visit (\d+)", seen.page)[1] for seen in observations]
    assert len(set(visits)) == len(visits)
