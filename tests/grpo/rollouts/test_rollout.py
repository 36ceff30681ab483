import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import count

import pytest

from envs.base import EnvError, Observation, StepResult, Task, TaskError
from envs.pool import EnvPool
from envs.replay import SharingPool
from envs.scripted import ScriptedEnv
from grpo.rollouts.agents import random_agent
from grpo.rollouts.gather import gather
from grpo.rollouts.page_state import page_state
from grpo.rollouts.rollout import Rollouts, run_episode
from grpo.types import Completion

TASK, TWO = Task("click-word", 0), Task("click-two-words", 0)
NOTHING = Completion((1,), (2,), (-1.0,), 0, "stop")


async def solve(observation, seed, env):
    """Click the first word of the goal that is not clicked yet."""
    done = observation.messages[-1]["content"].rpartition("Done so far: ")[2]
    words = observation.goal.removeprefix("Click ").removesuffix(".").split(" and then ")
    for word in words:
        (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
        action = f"click('{line[1:3]}')"
        if action not in done:
            return action, NOTHING
    raise AssertionError("all words are clicked")


async def talk(observation, seed, env):
    return "hello", NOTHING


def failing(*fail_at, kind=ScriptedEnv):
    """A pool's factory: the k-th environment fails at its call fail_at[k], 0 for never."""
    left = list(fail_at)
    return lambda: kind(fail_at=left.pop(0) if left else 0)


def rollouts(factory=ScriptedEnv, agent=solve, *, size=1, max_turns=3, **options):
    return Rollouts(EnvPool(factory, size), agent, max_turns, **options)


async def test_an_episode():
    episode = await run_episode(ScriptedEnv(), TWO, solve, max_turns=5, seed=[0])
    assert (episode.reward, episode.success, episode.stop_reason) == (1.0, True, "done")
    assert [turn.valid_action for turn in episode.turns] == [True, True]
    assert episode.task == TWO
    assert episode.goal == (await ScriptedEnv().reset(TWO)).goal != ""
    assert episode.records == ()


async def test_an_episode_keeps_other_verdicts_on_its_steps():
    class Generous(ScriptedEnv):
        """Another rule calls the first of two clicks a success; a third rule is for the last."""

        async def step(self, text):
            result = await super().step(text)
            info = {"success_generous": not result.success, "raw_reward": 0.5}
            return replace(result, info=info | ({"success_last": True} if result.done else {}))

    episode = await run_episode(Generous(), TWO, solve, max_turns=5, seed=[0])
    assert len(episode.turns) == 2
    assert episode.verdicts == {"success_generous": True, "success_last": True}
    assert (await run_episode(Generous(), TWO, talk, max_turns=1, seed=[0])).verdicts == {
        "success_generous": True
    }
    assert (await run_episode(ScriptedEnv(), TWO, solve, max_turns=5, seed=[0])).verdicts == {}


async def test_an_episode_is_recorded_on_request():
    class Photographed(ScriptedEnv):
        async def reset(self, task, *, screenshot=False):
            return replace(await super().reset(task), screenshot=b"png" if screenshot else None)

    options = {"max_turns": 5, "seed": [0]}
    episode = await run_episode(Photographed(), TWO, solve, record=True, **options)
    *acted, (last, nothing) = episode.records
    assert [record.result.reward for record in acted] == [0, 1]
    assert acted[0].result.observation is acted[1].observation
    assert (nothing, last) == (None, acted[1].result.observation)
    assert acted[0].observation.screenshot == b"png"
    assert (await run_episode(Photographed(), TWO, solve, **options)).records == ()
    play = rollouts(Photographed)
    assert (await play.episode(TWO, [0], record=True)).records[0].observation.screenshot == b"png"
    assert (await play.episode(TWO, [0])).records == ()


async def test_an_episode_ends_at_max_turns():
    episode = await run_episode(ScriptedEnv(), TASK, talk, max_turns=4, seed=[0])
    assert (episode.reward, episode.success, episode.stop_reason) == (0.0, False, "max_turns")
    assert [turn.valid_action for turn in episode.turns] == [False] * 4
    one = await run_episode(ScriptedEnv(), TWO, solve, max_turns=1, seed=[0])
    assert (len(one.turns), one.success, one.stop_reason) == (1, False, "max_turns")


async def test_valid_action_bonus():
    play = {"max_turns": 3, "seed": [0], "valid_action_bonus": 0.1}
    episode = await run_episode(ScriptedEnv(), TWO, solve, **play)
    assert episode.reward == pytest.approx(1.2)
    assert (await run_episode(ScriptedEnv(), TWO, talk, **play)).reward == 0.0


async def test_turns_have_their_own_rewards():
    async def talk_first(observation, seed, env):
        return await (solve if observation.error else talk)(observation, seed, env)

    play = {"max_turns": 3, "seed": [0], "valid_action_bonus": 0.1}
    episode = await run_episode(ScriptedEnv(), TASK, talk_first, **play)
    assert [turn.reward for turn in episode.turns] == [0.0, 1.1]
    episode = await run_episode(ScriptedEnv(), TWO, solve, **play)
    assert [turn.reward for turn in episode.turns] == [0.1, 1.1]
    assert episode.reward == sum(turn.reward for turn in episode.turns)


class Book(ScriptedEnv):
    """Two pages; "on" turns to the next one, and after the second page the episode ends."""

    async def reset(self, task, *, screenshot=False):
        self.page = 0
        return self.observe()

    async def step(self, text):
        self.page += text == "on"
        return StepResult(self.observe(), 0.0, done=self.page == 2)

    def observe(self):
        return Observation(({"role": "user", "content": ""},), page=f"page {self.page}")


async def test_the_state_of_a_turn_is_the_page_before_it():
    left, seen = ["stay", "on", "on"], []

    async def act(observation, seed, env):
        seen.append(page_state(observation))
        return left.pop(0), NOTHING

    episode = await run_episode(Book(), TASK, act, max_turns=5, seed=[0])
    assert [turn.state for turn in episode.turns] == seen
    assert seen[0] == seen[1] != seen[2]


def test_equal_pages_are_the_same_state():
    def state(text, page="button 'OK' [12]", **other):
        return page_state(Observation(({"role": "user", "content": text},), page=page, **other))

    first = state("Page: button 'OK' [12]", goal="Press OK.", url="http://one/")
    again = state("Page: button 'OK' [12] Done so far: noop()", error="no", url="http://two/")
    assert first == again
    assert first != state("Page: button 'OK' [12]", page="button 'OK' [13]")
    assert state("one", page="") == state("one", page="") != state("two", page="")


async def test_every_turn_has_its_own_seed():
    seeds = []

    async def act(observation, seed, env):
        seeds.append(seed)
        return "hello", NOTHING

    for seed in ([0, 0], [0, 1], [0, 0]):
        await run_episode(ScriptedEnv(), TASK, act, max_turns=3, seed=seed)
    assert len(set(seeds)) == 6
    assert seeds[:3] == seeds[6:]


@pytest.mark.parametrize("fail_at", [1, 2, 3])
async def test_a_failure_is_retried_once(fail_at):
    seen = []
    play = rollouts(failing(fail_at))
    episode = await play.episode(TWO, [0], on_episode=seen.append)
    assert (episode.reward, len(episode.turns)) == (1.0, 2)
    assert play.counters == {"env_failures": 1, "episodes": 1}
    assert seen == [episode]
    assert play.pool.created == 2


async def test_a_retry_has_the_same_seeds():
    seeds = []

    async def act(observation, seed, env):
        seeds.append(seed)
        return "hello", NOTHING

    await rollouts(failing(3), act, max_turns=2).episode(TASK, [4])
    assert seeds[:2] == seeds[2:]


async def test_two_failures_drop_the_episode():
    seen = []
    play = rollouts(failing(2, 2))
    assert await play.episode(TASK, [0], on_episode=seen.append) is None
    assert play.counters == {"env_failures": 2, "episodes_dropped": 1}
    assert "dead" in play.last_error
    assert seen == [None]


async def test_a_group_continues_without_a_dropped_episode():
    play = rollouts(failing(2, 0, 2))  # one session: the retry comes last, on the third one
    group = await play.group(TASK, 3, [0])
    assert [episode.reward for episode in group.episodes] == [1.0, 1.0]  # never a 0
    assert play.counters == {"env_failures": 2, "episodes_dropped": 1, "episodes": 2}


async def test_fewer_than_two_survivors_drop_the_group():
    # Two episodes fail, four succeed on the third session, then the two retries fail.
    play = rollouts(failing(1, 1, 0, 2, 1))
    groups = await play.collect([TASK, TWO], 3, [0])
    assert [group.task for group in groups] == [TWO]
    assert play.counters == {
        "env_failures": 4,
        "episodes_dropped": 2,
        "episodes": 4,
        "groups_dropped": 1,
    }


async def test_a_retry_is_on_a_fresh_session():
    """When a server dies all idle sessions are dead."""
    play = rollouts(size=4)
    async with AsyncExitStack() as leases:
        idle = [await leases.enter_async_context(play.pool.lease()) for _ in range(4)]
    for env in idle:
        await env.close()
    group = await play.group(TASK, 2, [0])
    assert [episode.reward for episode in group.episodes] == [1.0, 1.0]
    assert play.counters["episodes"] == 2
    assert play.counters["episodes_dropped"] == 0


async def test_a_pool_that_cannot_open_sessions():
    def refuse():
        raise EnvError("no server")

    play = rollouts(refuse)
    with pytest.raises(EnvError, match=r"no group of the step survived; .*: no server"):
        await play.collect([TASK], 2, [0])
    assert play.counters == {"env_failures": 4, "episodes_dropped": 2, "groups_dropped": 1}


async def test_an_unknown_task_is_not_an_infrastructure_failure():
    play = rollouts(size=4)
    with pytest.raises(TaskError, match="unknown task 'click-nothing'"):
        await play.collect([TASK, Task("click-nothing", 0)], 2, [0])
    assert play.counters["env_failures"] == 0


async def test_an_error_of_the_agent_is_raised_as_it_is():
    async def act(observation, seed, env):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await rollouts(agent=act).collect([TASK], 2, [0])


async def test_the_first_error_cancels_the_rest():
    cancelled = []

    async def wait():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def fail():
        await asyncio.sleep(0)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        await gather([wait(), fail(), wait()])
    assert cancelled == [True, True]
    assert await gather(asyncio.sleep(0, n) for n in range(3)) == [0, 1, 2]


class Slow:
    """Its step waits for an event."""

    def __init__(self, allowed):
        self.allowed = allowed

    async def reset(self, task, *, screenshot=False):
        return Observation(({"role": "user", "content": ""},))

    async def step(self, text):
        await self.allowed.wait()
        return StepResult(await self.reset(TASK), 1.0, done=True, success=True)

    async def close(self):
        pass


async def test_a_slow_page_does_not_hold_up_the_other_episodes():
    allowed, finished = asyncio.Event(), asyncio.Event()
    made, seen = [], []

    def factory():
        made.append(Slow(allowed) if not made else ScriptedEnv())
        return made[-1]

    def on_episode(episode):
        seen.append(episode)
        if len(seen) == 3:
            finished.set()

    play = rollouts(factory, random_agent, size=4)
    group = asyncio.create_task(play.group(TASK, 4, [0], on_episode=on_episode))
    await finished.wait()  # the three others, while the step of the first one waits
    assert not group.done()
    allowed.set()
    assert len((await group).episodes) == 4
    assert seen[-1] is (await group).episodes[0]  # the last to end, the first in order


async def test_groups_and_episodes_have_their_own_seeds():
    """The seed of a turn depends on the run's, the group's number and the episode's."""
    seeds = []

    async def act(observation, seed, env):
        seeds.append(seed)
        return await random_agent(observation, seed, env)

    async def seeds_of(first):
        seeds.clear()
        await rollouts(agent=act, max_turns=1).collect([TASK] * 2, 3, [5, 1], first=first)
        return list(seeds)

    together = await seeds_of(0)
    assert len(set(together)) == 6
    assert await seeds_of(0) == together
    assert (await seeds_of(1))[:3] == together[3:]  # group 1, as a rank of its own plays it


async def test_collect_calls_on_episode():
    seen = []
    await rollouts(size=2).collect([TASK, TWO], 2, [0], on_episode=seen.append)
    assert sorted(episode.task for episode in seen) == sorted([TASK, TASK, TWO, TWO])


class Unhurried(ScriptedEnv):
    """Other episodes act while it does."""

    async def step(self, text):
        await asyncio.sleep(0)
        return await super().step(text)


class Coin(Unhurried):
    """Where the click of the first word leads is another page in each environment."""

    made = count()

    def __init__(self):
        super().__init__()
        self.number = next(self.made)

    async def step(self, text):
        result = await super().step(text)
        page = f"{result.observation.page}\n{self.number}"
        return replace(result, observation=replace(result.observation, page=page))


async def guess(observation, seed, env):
    """Click the first word rightly, then any word."""
    if "Done so far" in observation.messages[-1]["content"]:
        return await random_agent(observation, seed, env)
    return await solve(observation, seed, env)


async def test_a_group_shares_what_its_episodes_do_alike():
    alone = rollouts(agent=guess, size=8)
    shared = Rollouts(SharingPool(EnvPool(ScriptedEnv, 8)), guess, 3)
    for seed in range(5):
        task = Task("click-two-words", seed)
        assert await shared.group(task, 8, [seed]) == await alone.group(task, 8, [seed])
    assert shared.counters == alone.counters
    # Each of the four words is clicked once after the first one, which is clicked once in each.
    assert shared.pool.counters["episodes_executed"] <= 5 * 4
    assert shared.pool.counters["steps_shared"] >= 5 * 7


async def test_a_task_that_is_not_deterministic_loses_no_episode():
    pool = SharingPool(EnvPool(Coin, 8))
    play = Rollouts(pool, guess, 3)
    group = await play.group(TWO, 8, [0])
    assert len(group.episodes) == 8
    assert play.counters == {"episodes": 8}
    assert pool.counters["replay_mismatches"] >= 1
    assert pool.unshared == {"click-two-words"}


async def test_failures_in_a_shared_group_are_retried_and_counted():
    pool = SharingPool(EnvPool(failing(0, 2, 0, 1, kind=Unhurried), 8))
    play = Rollouts(pool, guess, 3)
    alone = await rollouts(agent=guess, size=8).group(TWO, 8, [1])
    assert await play.group(TWO, 8, [1]) == alone
    assert play.counters["env_failures"] == pool.pool.discarded > 0
    assert play.counters["episodes"] == 8
    pool = SharingPool(EnvPool(lambda: ScriptedEnv(fail_at=1), 8))
    play = Rollouts(pool, guess, 3)
    assert await play.group(TWO, 4, [1]) is None
    assert play.counters == {"env_failures": 8, "episodes_dropped": 4, "groups_dropped": 1}
