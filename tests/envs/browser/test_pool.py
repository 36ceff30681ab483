from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest

from envs.browser.pool import browser_pool
from envs.scripted import ScriptedEnv


@pytest.mark.parametrize(("rank", "order"), [(0, "abca"), (1, "bcab"), (4, "bcab")])
async def test_sessions_go_round_the_servers(rank, order):
    opened = []

    class Session(ScriptedEnv):
        def __init__(self, url, deadline_s):
            super().__init__()
            opened.append((url, deadline_s))

    urls = ["http://a:1", "http://b:1", "http://c:1"]
    options = SimpleNamespace(env_urls=urls, env_sessions=4, env_workers=1, env_deadline=7.0)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(browser_pool(options, rank, Session))
        for _ in range(4):
            await stack.enter_async_context(pool.lease())
    assert opened == [(f"http://{name}:1", 7.0) for name in order]
