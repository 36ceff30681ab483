"""Sharing what episodes of one start do alike: same episodes, fewer actions, no stuck episode."""

import asyncio
import logging
import random
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.base import EnvError, Observation, StepResult, Task
from envs.checker import check_env
from envs.pool import EnvPool
from envs.replay import NotReproducible, SharingPool
from envs.scripted import ScriptedEnv

TASK = Task("maze", 3)


class Maze:
    """A page for each history of the moves a, b and c; "end" ends the episode.

    Attributes:
        log: reset, and the moves since.
        faults: numbers of the calls that fail, over all mazes of a test.
    """

    deterministic = refuses = True
    calls, faults = count(1), frozenset()

    def __init__(self):
        self.log, self.busy, self.closed = [], False, False

    async def reset(self, task, *, screenshot=False):
        async with self.call():
            self.task, self.history, self.screenshot = task, "", screenshot
            self.log.append("reset")
            return self.observe()

    async def step(self, text):
        async with self.call():
            self.log.append(text)
            if refused := self.refuse(text):
                return refused
            self.history += text[:1]
            done = text == "end"
            return StepResult(self.observe(), float(len(self.history)), done=done, success=done)

    def demonstrate(self):
        return f"after {self.history}"

    def refusals(self):
        if not self.refuses:
            return None
        page = self.observe()
        return lambda text: self.refuse(text, page)

    async def close(self):
        self.closed = True

    def refuse(self, text, page=None):
        if text in ("a", "b", "c", "end"):
            return None
        page, error = page or self.observe(), f"no move {text}"
        messages = ({"role": "user", "content": f"{page.page} {error}"},)
        refused = replace(page, messages=messages, error=error)
        return StepResult(refused, 0.0, done=False, valid_action=False)

    def observe(self):
        page = f"{self.task.name} {self.task.seed} {self.history}"
        return Observation(
            ({"role": "user", "content": page},),
            goal="end",
            page=page,
            actions=("a", "b"),
            screenshot=b"png" if self.screenshot else None,
            deterministic=self.deterministic,
        )

    @asynccontextmanager
    async def call(self):
        assert (self.busy, self.closed) == (False, False), "one episode per environment"
        self.busy = True
        await asyncio.sleep(0)
        if next(self.calls) in self.faults:
            self.closed = True
            raise EnvError("lost")
        self.busy = False
        yield


def mazes(**attributes):
    """Return a class of mazes with other attributes, which count their calls for themselves."""
    return type("Mazes", (Maze,), {"calls": count(1), **attributes})


def sharing(factory=Maze, size=4):
    return SharingPool(EnvPool(factory, size))


async def play(lender, texts, *, task=TASK, screenshot=False, fresh=False):
    """Play one episode; return its pages, rewards and verdicts."""
    async with lender.lease(fresh=fresh) as env:
        seen = [await env.reset(task, screenshot=screenshot), env.demonstrate()]
        for text in texts:
            await asyncio.sleep(0)
            result = await env.step(text)
            seen += [result, "" if result.done else env.demonstrate()]
            if result.done:
                break
        return seen


async def together(pool, *episodes, **options):
    async with pool.share(TASK) as lender:
        return await asyncio.gather(*(play(lender, texts, **options) for texts in episodes))


async def alone(texts):
    return await play(EnvPool(Maze, 1), texts)


async def test_equal_actions_are_executed_once():
    pool = sharing()
    episodes = await together(pool, *[["a", "b", "end"]] * 8)
    assert episodes == [await alone(["a", "b", "end"])] * 8
    assert pool.pool.created == 1
    assert pool.counters == {
        "episodes_executed": 1,
        "steps_executed": 3,
        "steps_shared": 7 * 3,
        "replay_mismatches": 0,
    }


async def test_where_histories_part_another_environment_replays_what_was_done():
    made = []

    def factory():
        made.append(Maze())
        return made[-1]

    pool = sharing(factory)
    left, right = ["a", "b", "a", "end"], ["a", "b", "c", "end"]
    assert await together(pool, left, right) == [await alone(left), await alone(right)]
    logs = sorted(env.log for env in made)
    assert logs == [["reset", *left], ["reset", *right]]
    assert pool.counters["steps_shared"] == 2


async def test_environments_go_back_as_soon_as_no_episode_needs_them():
    pool = sharing(size=1)
    paths = [["a", "a", "end"], ["a", "b", "end"], ["b", "end"], ["c", "c", "c", "end"]]
    async with asyncio.timeout(5):
        episodes = await together(pool, *paths)
    assert episodes == [await alone(path) for path in paths]
    async with asyncio.timeout(5), pool.lease() as env:  # the only one is free
        await env.reset(TASK)


@pytest.mark.parametrize("refuses", [True, False])
async def test_invalid_actions(refuses):
    pool = sharing(mazes(refuses=refuses))
    paths = [["x", "a", "y", "end"], ["a", "y", "end"], ["x", "a", "end"], ["x", "y", "z"]]
    assert await together(pool, *paths) == [await alone(path) for path in paths]
    if refuses:  # without an environment, and without a trace
        assert pool.counters["steps_executed"] == 2
        assert pool.counters["episodes_executed"] == 1


async def test_the_start_is_loaded_once():
    pool = sharing()
    episodes = await together(pool, *[[]] * 5)
    assert episodes == [await alone([])] * 5
    assert pool.counters["episodes_executed"] == 1


async def test_what_is_kept_is_not_executed_again():
    pool = sharing(size=1)

    async def again(*episodes, keep=True):
        async with pool.share(TASK, keep=keep) as lender:
            return await asyncio.gather(*(play(lender, texts) for texts in episodes))

    first, second = ["a", "b", "end"], ["a", "c", "end"]
    assert await again(first) == [await alone(first)]
    async with asyncio.timeout(5), pool.lease() as env:  # the only one is free
        await env.reset(TASK)
    before = dict(pool.counters)
    assert await again(first, first) == [await alone(first)] * 2
    assert pool.counters == before | {"steps_shared": 6}
    assert await again(first, second, keep=False) == [await alone(first), await alone(second)]
    assert pool.counters["episodes_executed"] == before["episodes_executed"] + 1
    assert pool.counters["steps_executed"] == before["steps_executed"] + 3  # one of them replayed
    await again(first)
    assert pool.counters["episodes_executed"] == before["episodes_executed"] + 2


async def test_nothing_is_kept_of_a_block_that_failed():
    pool = sharing()

    async def fail():
        async with pool.share(TASK, keep=True) as lender:
            await play(lender, ["a"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with pool.share(TASK, keep=True) as lender:
        await play(lender, ["a"])
    assert pool.counters["episodes_executed"] == 2


async def test_screenshots():
    pool = sharing()
    first, second = await together(pool, ["a"], ["b"], screenshot=True)
    assert first[0].screenshot == first[2].observation.screenshot == b"png"
    assert second[2].observation.screenshot == b"png"
    async with pool.share(TASK) as lender, lender.lease() as one, lender.lease() as other:
        await one.reset(TASK)
        with pytest.raises(ValueError, match="all episodes of a start"):
            await other.reset(TASK, screenshot=True)


async def test_the_contract_of_one_episode():
    async with sharing().share(TASK) as lender, lender.lease() as env:
        with pytest.raises(RuntimeError, match="call reset first"):
            await env.step("a")
        with pytest.raises(ValueError, match="is for Task"):
            await env.reset(Task("maze", 4))
        await env.reset(TASK)
        assert (await env.step("end")).done
        with pytest.raises(RuntimeError, match="call reset first"):
            await env.step("end")
        assert (await env.reset(TASK)).page == "maze 3 "
        await env.close()
        await env.close()
        assert env.demonstrate() == ""


@pytest.mark.parametrize("make", [Maze, ScriptedEnv])
async def test_a_shared_environment_keeps_the_contract(make):
    task = Task("click-word", 3)
    async with sharing(make).share(task) as lender:

        class Lent:
            """`check_env` wants an environment that it can make."""

            def __init__(self):
                self.lease, self.env = lender.lease(), None

            async def reset(self, task, *, screenshot=False):
                if self.env is not None:
                    await self.close()
                    self.lease = lender.lease()
                self.env = await self.lease.__aenter__()
                return await self.env.reset(task)

            async def step(self, text):
                return await self.env.step(text)

            async def close(self):
                if self.env is not None:
                    await self.lease.__aexit__(None, None, None)
                    self.env = None

        await check_env(Lent, task)


async def test_a_task_that_is_not_deterministic_is_not_shared():
    pool = sharing(mazes(deterministic=False))
    async with pool.share(TASK) as lender:
        with pytest.raises(NotReproducible):
            await play(lender, ["a"])
        unshared = EnvPool(mazes(deterministic=False), 1)
        assert await play(pool, ["a", "end"]) == await play(unshared, ["a", "end"])
    async with pool.share(TASK) as lender:
        assert lender is pool
    assert pool.unshared == {"maze"}
    assert pool.counters["replay_mismatches"] == 0


async def test_a_replay_that_leads_elsewhere_ends_the_sharing(caplog):
    numbers = count()

    class Moody(Maze):
        """Its third page is another one after each reset."""

        async def reset(self, task, *, screenshot=False):
            self.number = next(numbers)
            return await super().reset(task)

        def observe(self):
            page = super().observe()
            return replace(page, page=f"{page.page} {self.number if self.history == 'ab' else 0}")

    pool = sharing(Moody)
    async with pool.share(TASK) as lender:
        with caplog.at_level(logging.WARNING):
            episodes = await asyncio.gather(
                *(play(lender, ["a", "b", last]) for last in ("a", "end")), return_exceptions=True
            )
        assert [type(episode) for episode in episodes] == [list, NotReproducible]
        with pytest.raises(NotReproducible):  # nothing new is shared, not even by chance
            await play(lender, ["c"])
    assert pool.unshared == {"maze"}
    assert pool.counters["replay_mismatches"] == 1
    assert "maze is not deterministic" in caplog.text
    assert "after 2 actions" in caplog.text
    async with asyncio.timeout(5):  # no environment was kept
        leases = [pool.lease() for _ in range(4)]
        await asyncio.gather(*(lease.__aenter__() for lease in leases))


@pytest.mark.parametrize("what", ["reward", "done", "error", "goal"])
async def test_a_replay_is_compared_in_all_that_counts(what):
    class Other(Maze):
        numbers = count()

        async def reset(self, task, *, screenshot=False):
            self.number = next(self.numbers)
            return await super().reset(task)

        async def step(self, text):
            result = await super().step(text)
            if not self.number or self.history != "a":
                return result
            if what == "reward":
                return replace(result, reward=-1.0)
            if what == "done":
                return replace(result, done=True)
            return replace(result, observation=replace(result.observation, **{what: "other"}))

    pool = sharing(Other)
    async with pool.share(TASK) as lender:
        episodes = await asyncio.gather(
            *(play(lender, ["a", last]) for last in ("b", "c")), return_exceptions=True
        )
    assert [type(episode) for episode in episodes] == [list, NotReproducible]


async def test_a_failure_is_that_of_the_episode_that_executed():
    for fault in (1, 2):
        pool = sharing(mazes(faults=frozenset({fault})))
        async with pool.share(TASK) as lender:
            episodes = await asyncio.gather(
                *(play(lender, ["a", "end"]) for _ in range(4)), return_exceptions=True
            )
        assert [type(episode) for episode in episodes] == [EnvError, list, list, list]
        assert episodes[1] == await alone(["a", "end"])
        assert pool.pool.discarded == 1


async def test_a_second_attempt_takes_no_environment_that_was_idle():
    made = []

    def factory():
        made.append(Maze())
        return made[-1]

    async with sharing(factory).share(TASK) as lender, lender.lease() as first:
        await first.reset(TASK)
        assert len(await play(lender, ["a", "end"], fresh=True)) == 6
        assert [env.log for env in made] == [["reset"], ["reset", "a", "end"]]


async def test_a_cancelled_episode_leaves_its_action_to_the_others():
    entered, never = asyncio.Event(), asyncio.Event()

    class Slow(Maze):
        first = True

        async def step(self, text):
            if type(self).first:
                type(self).first = False
                entered.set()
                await never.wait()
            return await super().step(text)

    pool = sharing(Slow)
    async with pool.share(TASK) as lender:
        stuck = asyncio.create_task(play(lender, ["a", "end"]))
        await entered.wait()
        other = asyncio.create_task(play(lender, ["a", "end"]))
        await asyncio.sleep(0)
        stuck.cancel()
        assert await other == await alone(["a", "end"])
        with pytest.raises(asyncio.CancelledError):
            await stuck
    assert pool.pool.discarded == 1


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "x", "end"]), max_size=5), min_size=1, max_size=8
)


@settings(max_examples=150)
@given(
    groups=st.lists(PATHS, min_size=1, max_size=3),
    size=st.integers(1, 5),
    refuses=st.booleans(),
    faults=st.frozensets(st.integers(1, 40), max_size=6),
    order=st.integers(0, 1000),
)
async def test_all_episodes_are_those_of_environments_of_their_own(
    groups, size, refuses, faults, order
):
    """Any paths, sizes of the pool, failures and orders; nobody waits for ever."""
    factory = mazes(refuses=refuses, faults=faults)
    pool, wait, failures = sharing(factory, size), random.Random(order), Counter()

    async def episode(lender, task, texts):
        fresh = False
        while True:
            for _ in range(wait.randrange(4)):
                await asyncio.sleep(0)
            try:
                return await play(lender, texts, task=task, fresh=fresh)
            except EnvError:
                failures["env"], fresh = failures["env"] + 1, True

    async def group(seed, paths):
        task = Task("maze", seed)
        async with pool.share(task) as lender:
            return await asyncio.gather(*(episode(lender, task, path) for path in paths))

    async with asyncio.timeout(20):
        played = await asyncio.gather(*(group(seed, paths) for seed, paths in enumerate(groups)))
    for seed, (paths, episodes) in enumerate(zip(groups, played, strict=True)):
        for path, episode in zip(paths, episodes, strict=True):
            assert episode == await play(EnvPool(Maze, 1), path, task=Task("maze", seed))
    assert failures["env"] == pool.pool.discarded
    assert pool.counters["replay_mismatches"] == 0
    leases = [pool.lease() for _ in range(size)]
    async with asyncio.timeout(5):
        await asyncio.gather(*(lease.__aenter__() for lease in leases))
