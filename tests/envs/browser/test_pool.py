import asyncio
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from envs.base import EnvError, Task
from envs.browser.new_site import write_site
from envs.browser.pool import BrowserPool
from envs.scripted import ScriptedEnv


def make_options(urls=(), sessions=4, task_file="", reward="success"):
    return SimpleNamespace(
        env_url=urls,
        env_sessions=sessions,
        env_workers=1,
        env_deadline=30.0,
        reward=reward,
        task_file=task_file,
        answer="action",
        prompt="",
    )


@pytest.mark.parametrize(("rank", "order"), [(0, "abca"), (1, "bcab"), (4, "bcab")])
async def test_sessions_go_round_the_servers(rank, order):
    opened = []

    class Session(ScriptedEnv):
        def __init__(self, url, deadline_s):
            super().__init__()
            opened.append((url, deadline_s))

    options = make_options(("http://a:1", "http://b:1", "http://c:1"))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(BrowserPool(options, rank=rank, env=Session))
        for _ in range(4):
            await stack.enter_async_context(pool.lease())
    assert opened == [(f"http://{name}:1", 30.0) for name in order]
    assert not pool.server.alive


async def test_a_partial_reward_is_asked_for_where_it_is_wanted():
    made = []

    def make(url, **options):
        made.append(options)
        return ScriptedEnv()

    for reward in ("success", "partial"):
        options = make_options(("http://a:1",), reward=reward)
        async with BrowserPool(options, env=make) as pool, pool.lease():
            pass
    assert made == [{"deadline_s": 30.0}, {"deadline_s": 30.0, "partial_reward": True}]


def test_a_pool_is_created_without_an_event_loop_and_starts_nothing():
    pool = BrowserPool(make_options())
    assert not pool.server.alive
    asyncio.run(pool.close())
    assert pool.size == 4


@pytest.mark.browser
async def test_a_closed_pool_has_stopped_its_server():
    async with BrowserPool(make_options(sessions=1)) as pool:
        async with pool.lease() as env:
            observation = await env.reset(Task("click-test", 0))
            assert (await env.step(observation.actions[0])).success
        assert pool.server.alive
        assert pool.server.processes()
    assert not pool.server.alive
    assert pool.server.processes() == []


@pytest.mark.browser
async def test_the_server_of_a_pool_serves_the_tasks_of_a_file(tmp_path):
    write_site(tmp_path)
    options = make_options(sessions=1, task_file=str(tmp_path / "tasks.py"))
    async with BrowserPool(options) as pool, pool.lease() as env:
        assert (await env.reset(Task("Order", 0))).goal.startswith("Order: ")


@pytest.mark.browser
async def test_the_server_starts_while_other_things_are_loaded():
    async with BrowserPool(make_options(sessions=1)) as pool:
        async with asyncio.timeout(60):
            while not pool.server.url:
                await asyncio.sleep(0.05)
        assert pool.created == 0
        started = pool.server.pid
        async with pool.lease() as env:
            await env.reset(Task("click-test", 0))
        assert pool.server.pid == started
    assert not pool.server.alive


async def test_a_server_that_does_not_start_is_an_error_of_the_first_lease(monkeypatch, caplog):
    monkeypatch.setattr("sys.executable", "/bin/false")
    async with BrowserPool(make_options(sessions=1)) as pool:
        await asyncio.sleep(0.5)
        with pytest.raises(EnvError, match="the browser server exited at its start"):
            async with pool.lease():
                pass
    assert caplog.text == ""
