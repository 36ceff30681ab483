"""Demonstrations are drawn, played again and judged by the environment."""

from dataclasses import replace

import pytest

from envs.base import Task
from envs.demonstrations import Demonstration, append_demonstration
from envs.pool import EnvPool
from envs.replay import SharingPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.rollouts.demonstrations import (
    DemonstrationSampler,
    load_demonstrations,
    replay,
)
from grpo.rollouts.gather import gather

SEEDS = range(5)


async def solved(seed, task="click-two-words"):
    env, task = ScriptedEnv(), Task(task, seed)
    observation, actions, pages = await env.reset(task), [], []
    done = False
    while not done:
        actions.append(env.demonstrate())
        pages.append(observation.page)
        result = await env.step(actions[-1])
        observation, done = result.observation, result.done
    assert result.success
    return Demonstration(task, observation.goal, tuple(actions), tuple(pages))


def test_each_epoch_draws_everything_once_in_another_order_and_variant():
    every = [Demonstration(Task("a", seed), "", ("noop()",)) for seed in SEEDS]
    sampler = DemonstrationSampler(every, seed=1)
    drawn = [pair for step in range(5) for pair in sampler.draw(step, 4)]  # four epochs of five
    epochs = [drawn[i : i + 5] for i in range(0, 20, 5)]
    for variant, epoch in enumerate(epochs):
        assert {each.task.seed for each, _ in epoch} == set(SEEDS)
        assert all(task == replace(each.task, variant=variant) for each, task in epoch)
    assert len({tuple(each.task.seed for each, _ in epoch) for epoch in epochs}) > 1
    assert sampler.draw(3, 4) == DemonstrationSampler(every, seed=1).draw(3, 4)


@pytest.mark.parametrize("pool", [EnvPool, lambda *a: SharingPool(EnvPool(*a))])
async def test_what_is_demonstrated_succeeds_again(pool):
    lender, shown = pool(ScriptedEnv, 2), [await solved(seed) for seed in SEEDS]
    replays = await gather(replay(lender, each) for each in shown)
    assert [(each.succeeds, each.error, each.differs) for each in replays] == [(True, "", 0)] * 5


async def test_what_does_not_succeed_says_why():
    pool, one = EnvPool(ScriptedEnv, 1), await solved(0)
    wrong = await replay(pool, replace(one, actions=one.actions[::-1]))
    assert (wrong.succeeds, wrong.error) == (False, "no success after 1 actions")
    short = await replay(pool, replace(one, actions=one.actions[:1], pages=()))
    assert (short.succeeds, short.error) == (False, "no success after 1 actions")
    invalid = await replay(pool, replace(one, actions=("click('1')", *one.actions[1:])))
    assert not invalid.succeeds
    assert invalid.error == "action 1: there is nothing to do for click('1') on the page"


async def test_a_page_that_differs_is_told_and_does_not_decide():
    one = await solved(0)
    changed = replace(one, pages=(one.pages[0], "another page"))
    played = await replay(EnvPool(ScriptedEnv, 1), changed)
    assert (played.succeeds, played.differs) == (True, 2)


async def test_a_session_that_fails_is_replaced_once():
    made = []

    def make():
        made.append(ScriptedEnv(fail_at=2 if not made else 0))
        return made[-1]

    played = await replay(EnvPool(make, 1), await solved(0))
    assert (len(made), played.succeeds, played.error) == (2, True, "")
    lost = await replay(EnvPool(lambda: ScriptedEnv(fail_at=2), 1), await solved(0))
    assert (lost.episode, lost.succeeds) == (None, False)
    assert "dead" in lost.error


async def test_an_environment_renumbers_a_variant():
    class Numbered(ScriptedEnv):
        """Its variant 3 has numbers 100 higher."""

        async def reset(self, task, **options):
            self.more = 100 if task.variant == 3 else 0
            return await super().reset(task, **options)

        async def step(self, text):
            number = int(text.split("'")[1]) - self.more
            return await super().step(f"click('{number}')")

        def renumbered(self, text):
            return f"click('{int(text.split(chr(39))[1]) + self.more}')"

    for pool in (EnvPool(Numbered, 1), SharingPool(EnvPool(Numbered, 1))):
        one = await solved(0)
        played = await replay(pool, one, replace(one.task, variant=3))
        assert played.succeeds
        said = [turn.text for turn in played.episode.turns]
        assert said == [Numbered.renumbered(env_at(100), text) for text in one.actions]


def env_at(more):
    env = ScriptedEnv()
    env.more = more
    return env


def config_of(path, **options):
    return Config(task="click-two-words", demonstrations=str(path), **options)


async def test_a_run_reads_those_of_its_tasks(tmp_path):
    path = tmp_path / "demos.jsonl"
    for name in ("click-two-words", "click-word"):
        append_demonstration(path, await solved(0, name))
    (found,) = load_demonstrations(config_of(path))
    assert found == await solved(0)
    assert config_of(path).imitation_steps > 0
    assert config_of(path, warm_start_steps=7).imitation_steps == 7
    assert Config().imitation_steps == 0


async def test_what_a_run_cannot_use_is_refused(tmp_path):
    path = tmp_path / "demos.jsonl"
    with pytest.raises(ConfigError, match=r"demonstrations: .*No such file"):
        load_demonstrations(config_of(path))
    append_demonstration(path, await solved(0, "click-word"))
    with pytest.raises(ConfigError, match=r"expected demonstrations of .*click-two.*got.*click-w"):
        load_demonstrations(config_of(path))
    append_demonstration(path, await solved(0))
    with pytest.raises(ConfigError, match=r"max_turns must be at least 2 for .* got 1"):
        load_demonstrations(config_of(path, max_turns=1))
    append_demonstration(path, await solved(1_000_000))
    with pytest.raises(ConfigError, match="expected a training seed, below 1000000, got 1000000"):
        load_demonstrations(config_of(path))
