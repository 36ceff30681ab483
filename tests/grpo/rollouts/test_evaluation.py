from math import sqrt

import pytest

from envs.base import EnvError, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.rollouts.agents import blind_agent, random_agent
from grpo.rollouts.evaluation import Outcome, Success, evaluate, wilson_interval
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion

TASKS = [Task("click-word", seed) for seed in range(400)]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (98, 100, 0.9300, 0.9945),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I
        (1, 29, 0.0061, 0.1718),  # the same
    ],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)


def test_success_of_outcomes():
    outcomes = [Outcome(TASKS[0], True, 1), Outcome(TASKS[1], False, 4), Outcome(TASKS[2], True, 1)]
    assert Success.of(outcomes) == Success(2 / 3, *wilson_interval(2, 3), 3, 2, 2.0)
    assert Success.of([]) == Success(0.0, 0.0, 1.0, 0, 0, 0.0)


def test_a_benchmarks_own_verdict_stands_beside_success():
    own = [{"success_theirs": True}, {"success_theirs": True}, {"success_theirs": False}]
    outcomes = [Outcome(TASKS[i], i == 0, 1, verdicts) for i, verdicts in enumerate(own)]
    rate = Success.of(outcomes)
    assert (rate.success, rate.verdicts) == (1 / 3, {"success_theirs": 2 / 3})
    assert rate.to_dict() == {
        "success": 1 / 3, "low": rate.low, "high": rate.high, "n": 3, "solved": 1, "turns": 1.0,
        "success_theirs": 2 / 3,
    }  # fmt: skip
    # Over tasks of which some have none, it would be the rate of something else.
    assert Success.of([*outcomes, Outcome(TASKS[3], True, 1)]).verdicts == {}


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (50, 100), (1, 7)])
def test_wilson_interval_ends_where_the_score_test_rejects(successes, n):
    """Its ends p solve |successes/n - p| = z sqrt(p (1 - p) / n)."""
    for p in wilson_interval(successes, n):
        z = abs(successes / n - p) / sqrt(p * (1 - p) / n)
        assert z == pytest.approx(1.959964, abs=1e-9)


def test_wilson_interval_at_its_ends():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (1, 0)])
def test_counts_that_are_not_a_proportion(successes, n):
    with pytest.raises(ValueError, match=f"between 0 and n={n}, got {successes}"):
        wilson_interval(successes, n)


async def right(observation, seed, env):
    word = observation.goal.removeprefix("Click ").removesuffix(".")
    (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
    return f"click('{line[1:3]}')", Completion((1,), (2,), (-1.0,), 0, "stop")


async def outcomes_of(*, tasks=TASKS, agent=right, pool=None, **options):
    """Evaluate an agent with one decoding."""
    rollouts = Rollouts(pool or EnvPool(ScriptedEnv, 4), agent, 1)
    return (await evaluate({"sampled": rollouts}, tasks, **options))["sampled"]


async def test_an_agent_that_is_right():
    expected = [Outcome(task, True, 1) for task in TASKS[:100]]
    assert await outcomes_of(tasks=TASKS[:100]) == expected


async def test_the_random_agent():
    outcomes = await outcomes_of(agent=random_agent)
    rate = Success.of(outcomes)
    assert rate.low < 0.25 < rate.high  # four words, one of them right
    assert outcomes == await outcomes_of(agent=random_agent)
    assert outcomes != await outcomes_of(agent=random_agent, seed=1)


async def test_decodings_share_a_pool_side_by_side():
    pool, order = EnvPool(ScriptedEnv, 1), []

    def decoding(name, agent):
        async def act(observation, seed, env):
            order.append(name)
            return await agent(observation, seed, env)

        return Rollouts(pool, act, 1)

    right_blind = blind_agent(right_if_it_sees)
    decodings = {"one": decoding("one", right), "other": decoding("other", right_blind)}
    outcomes = await evaluate(decodings, TASKS[:40])
    assert order == ["one", "other"] * 40
    assert Success.of(outcomes["one"]).success == 1.0
    assert Success.of(outcomes["other"]).solved == 0


async def right_if_it_sees(observation, seed, env):
    if observation.page == "(hidden)":
        return "noop()", Completion((1,), (2,), (-1.0,), 0, "stop")
    return await right(observation, seed, env)


async def test_on_episode_is_called_after_each_episode():
    seen = []
    pool = EnvPool(ScriptedEnv, 1)
    await outcomes_of(tasks=TASKS[:5], pool=pool, on_episode=seen.append)
    assert [episode.task for episode in seen] == TASKS[:5]


async def test_dropped_episodes_do_not_count():
    # One session: the first episode, the nine others, the first one's second attempt.
    fail_at = iter([1, 0, 1])
    pool = EnvPool(lambda: ScriptedEnv(next(fail_at)), 1)
    rate = Success.of(await outcomes_of(tasks=TASKS[:10], pool=pool))
    assert (rate.success, rate.n) == (1.0, 9)


async def test_an_evaluation_that_no_episode_survives():
    pool = EnvPool(lambda: ScriptedEnv(fail_at=1), 2)
    with pytest.raises(EnvError, match=r"no episode could be played; .* this environment is dead"):
        await outcomes_of(tasks=TASKS[:10], pool=pool)
