from collections import Counter
from math import sqrt

import pytest

from envs.base import EnvError, Observation, Task, TaskError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.rollouts.evaluation import (
    Outcome,
    Success,
    blind,
    evaluate,
    random_agent,
    wilson_interval,
)
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion

TASKS = [Task("click-word", seed) for seed in range(400)]


def seeing(*actions):
    return Observation((), actions=actions)


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


@pytest.mark.parametrize(("successes", "n"), [(3, 10), (50, 100), (1, 7)])
def test_wilson_interval_is_where_the_score_test_rejects(successes, n):
    """Its ends p solve |successes/n - p| = z sqrt(p (1 - p) / n)."""
    for p in wilson_interval(successes, n):
        z = abs(successes / n - p) / sqrt(p * (1 - p) / n)
        assert z == pytest.approx(1.959964, abs=1e-9)


def test_wilson_interval_at_its_ends():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (1, 0)])
def test_wilson_interval_of_no_proportion(successes, n):
    with pytest.raises(ValueError, match=f"between 0 and n={n}, got {successes}"):
        wilson_interval(successes, n)


async def test_random_policy_is_uniform():
    actions = [f"click('{i}')" for i in range(5)]
    counts = Counter([(await random_agent(seeing(*actions), seed))[0] for seed in range(5000)])
    assert set(counts) == set(actions)
    # Hoeffding and a union of ten tails: a share is 0.043 off with probability 1e-7 at most.
    assert max(abs(count / 5000 - 1 / 5) for count in counts.values()) < 0.043


async def test_random_policy_needs_no_tokens():
    text, completion = await random_agent(seeing(), 0)
    assert text == "noop()"
    assert completion.completion_ids == ()
    assert await random_agent(seeing("a", "b"), 3) == await random_agent(seeing("a", "b"), 3)


async def right(observation, seed):
    word = observation.goal.removeprefix("Click ").removesuffix(".")
    (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
    return f"click('{line[1:3]}')", Completion((1,), (2,), (-1.0,), 0, "stop")


async def played(*, tasks=TASKS, act=right, pool=None, seed=0):
    play = Rollouts(pool or EnvPool(ScriptedEnv, 4), act, 1)
    return (await evaluate({"it": play}, tasks, seed=seed))["it"]


async def test_evaluate_a_policy_that_is_right():
    assert await played(tasks=TASKS[:100]) == [Outcome(task, True, 1) for task in TASKS[:100]]


async def test_evaluate_chance():
    outcomes = await played(act=random_agent)
    rate = Success.of(outcomes)
    assert rate.low < 0.25 < rate.high  # four words, one of them right
    assert outcomes == await played(act=random_agent)
    assert outcomes != await played(act=random_agent, seed=1)


async def test_ways_share_a_pool_side_by_side():
    pool, order = EnvPool(ScriptedEnv, 1), []

    def way(name, act):
        async def noted(observation, seed):
            order.append(name)
            return await act(observation, seed)

        return Rollouts(pool, noted, 1)

    ways = {"right": way("right", right), "wrong": way("wrong", blind(right_or_first))}
    outcomes = await evaluate(ways, TASKS[:40])
    assert order == ["right", "wrong"] * 40
    assert Success.of(outcomes["right"]).success == 1.0
    assert Success.of(outcomes["wrong"]).solved == 0


async def right_or_first(observation, seed):
    if observation.page == "(hidden)":
        return "noop()", Completion((1,), (2,), (-1.0,), 0, "stop")
    return await right(observation, seed)


async def test_dropped_episodes_do_not_count():
    fail_at = iter([1, 0, 1])  # one session: the first episode, the nine others, its second try
    pool = EnvPool(lambda: ScriptedEnv(next(fail_at)), 1)
    rate = Success.of(await played(tasks=TASKS[:10], pool=pool))
    assert (rate.success, rate.n) == (1.0, 9)


async def test_an_evaluation_that_no_episode_survives():
    pool = EnvPool(lambda: ScriptedEnv(fail_at=1), 2)
    with pytest.raises(EnvError, match=r"no episode could be played; .* this environment is dead"):
        await played(tasks=TASKS[:10], pool=pool)


async def test_a_page_that_cannot_be_hidden():
    observation = Observation(({"role": "user", "content": "nothing here"},), page="button")
    with pytest.raises(TaskError, match="does not hold the page"):
        await blind(right)(observation, 0)
