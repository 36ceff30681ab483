import asyncio

import pytest

from envs.base import EnvError, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv

TASK = Task("click-word", 0)


async def test_an_idle_environment_is_reused():
    pool = EnvPool(ScriptedEnv, size=2)
    async with pool.lease() as first:
        await first.reset(TASK)
    async with pool.lease() as second:
        assert second is first
    assert (pool.created, pool.discarded) == (1, 0)


async def test_the_environment_that_was_idle_longest_is_lent():
    pool = EnvPool(ScriptedEnv, size=2)
    async with pool.lease() as later, pool.lease() as earlier:
        pass
    async with pool.lease() as lent:
        assert lent is earlier
    async with pool.lease() as lent:
        assert lent is later
    async with pool.lease() as lent:
        assert lent is earlier


async def test_size_bounds_the_leases():
    pool = EnvPool(ScriptedEnv, size=2)
    lent = most = 0

    async def episode():
        nonlocal lent, most
        async with pool.lease():
            lent += 1
            most = max(most, lent)
            await asyncio.sleep(0)
            lent -= 1

    await asyncio.gather(*(episode() for _ in range(10)))
    assert most == 2
    assert pool.created == 2


async def test_a_failed_environment_is_closed_and_replaced():
    pool = EnvPool(lambda: ScriptedEnv(fail_at=1 if pool.created == 0 else 0), size=1)
    with pytest.raises(EnvError):
        async with pool.lease() as broken:
            await broken.reset(TASK)
    assert broken.closed
    async with pool.lease() as env:
        assert env is not broken
        await env.reset(TASK)
    assert (pool.created, pool.discarded) == (2, 1)


async def test_a_cancelled_lease_is_discarded():
    pool = EnvPool(ScriptedEnv, size=1)
    lent = []

    async def episode():
        async with pool.lease() as env:
            lent.append(env)
            await asyncio.Event().wait()

    task = asyncio.create_task(episode())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lent[0].closed
    assert pool.discarded == 1
    async with pool.lease() as env:
        assert env is not lent[0]


async def test_a_failing_close_does_not_hide_the_exception_of_the_lease(caplog):
    class Stuck(ScriptedEnv):
        async def close(self):
            raise OSError("stuck")

    pool = EnvPool(Stuck, size=1)
    with pytest.raises(EnvError, match="mine"):
        async with pool.lease():
            raise EnvError("mine")
    assert "failed to close" in caplog.text
    async with pool.lease():
        pass


async def test_a_coroutine_factory_that_fails_frees_the_slot():
    made = []

    async def factory():
        made.append(1)
        if len(made) == 1:
            raise EnvError("no server")
        return ScriptedEnv()

    pool = EnvPool(factory, size=1)
    with pytest.raises(EnvError, match="no server"):
        await pool.lease().__aenter__()
    async with pool.lease() as env:
        assert isinstance(env, ScriptedEnv)
    assert pool.created == 1


async def test_close():
    pool = EnvPool(ScriptedEnv, size=2)
    async with pool.lease() as lent:
        async with pool.lease() as idle:
            pass
        await pool.close()
        assert idle.closed
        assert not lent.closed
    assert lent.closed
    message = r"the pool was closed, by close\(\) or at the end of its `async with` block"
    with pytest.raises(RuntimeError, match=message):
        await pool.lease().__aenter__()


def test_size_is_checked():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EnvPool(ScriptedEnv, size=0)
