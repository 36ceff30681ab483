"""Sharing what episodes of a start do alike, over the real server: the same episodes."""

import pytest

from envs.base import Task
from envs.browser.env import BrowserEnv
from envs.pool import EnvPool
from envs.replay import SharingPool
from grpo.rollouts.agents import random_agent
from grpo.rollouts.rollout import Rollouts
from tests.support.guess import guess

pytestmark = pytest.mark.browser

TASKS = [
    *("click-button", "click-checkboxes", "click-color", "click-dialog-2", "click-link"),
    *("click-option", "click-tab-2", "click-test-2", "click-widget", "count-shape"),
    *("enter-date", "find-word", "focus-text-2", "grid-coordinate", "identify-shape"),
    *("navigate-tree", "read-table", "simple-arithmetic"),
    *("login-user", "enter-password", "use-autocomplete"),  # several actions
]


@pytest.mark.parametrize("name", TASKS)
async def test_shared_episodes_are_those_that_are_not(server, name):
    async with EnvPool(lambda: BrowserEnv(server.url), 6) as pool:
        shared = Rollouts(SharingPool(pool), guess, 4)
        alone = Rollouts(pool, guess, 4)
        task = Task(name, 3)
        assert await shared.group(task, 6, [0]) == await alone.group(task, 6, [0])
        assert shared.counters == alone.counters == {"episodes": 6}
        assert shared.pool.counters["replay_mismatches"] == 0
        assert shared.pool.counters["steps_shared"] > 0


async def test_a_task_with_a_clock_is_not_shared(server):
    async with EnvPool(lambda: BrowserEnv(server.url), 4) as pool:
        shared = Rollouts(SharingPool(pool), random_agent, 2)
        assert len((await shared.group(Task("stock-market", 0), 4, [0])).episodes) == 4
        assert shared.pool.unshared == {"stock-market"}
