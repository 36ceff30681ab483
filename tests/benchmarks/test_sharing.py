"""The comparison of shared episodes with the same ones alone: equal ones, and one that differs."""

from dataclasses import replace

from benchmarks.sharing import compare
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.names import TIMED_TASKS


async def test_episodes_of_deterministic_tasks_are_the_same():
    found = await compare(["click-test", "enter-text"], seeds=1, group_size=4, turns=3)
    assert (found["episodes"], found["compared"], found["lost"]) == (8, 8, 0)
    assert (found["different"], found["replay_mismatches"]) == (0, 0)
    assert found["episodes_executed_share"] < 1


async def test_an_episode_that_ends_otherwise_is_found(monkeypatch):
    step, steps = BrowserEnv.step, []

    async def changed(self, text):
        steps.append(await step(self, text))
        return replace(steps[-1], reward=5.0) if len(steps) == 1 else steps[-1]

    monkeypatch.setattr(BrowserEnv, "step", changed)
    found = await compare(["click-test"], seeds=1, group_size=2, turns=1)
    assert found["different"] >= 1
    assert found["tasks_that_differ"] == ["click-test"]


async def test_timed_tasks_are_not_shared():
    names = sorted(TIMED_TASKS - {"stock-market"})
    found = await compare(names, seeds=1, group_size=2, turns=1)
    assert found["episodes_executed_share"] >= 1
