from contextlib import AsyncExitStack

import pytest

from envs import sessions
from envs.scripted import ScriptedEnv


@pytest.mark.parametrize(("first", "order"), [(0, "abca"), (1, "bcab"), (4, "bcab")])
async def test_sessions_go_round_the_servers(monkeypatch, first, order):
    opened = []

    class Session(ScriptedEnv):
        def __init__(self, url, **options):
            super().__init__()
            opened.append((url, options["hide_page"]))

    monkeypatch.setattr(sessions, "BrowserGymEnv", Session)
    urls = ["http://a:1", "http://b:1", "http://c:1"]
    async with AsyncExitStack() as stack:
        browsers = sessions.browser_sessions(urls, size=4, first=first)
        pools = await stack.enter_async_context(browsers)
        pool = await stack.enter_async_context(pools(hide_page=True))
        for _ in range(4):
            await stack.enter_async_context(pool.lease())
    assert opened == [(f"http://{name}:1", True) for name in order]
