"""Success per task over the steps, and what is said to have changed."""

import pytest

from envs.base import Task
from grpo.reporting.overview import POINTS, overview, solved_now
from grpo.rollouts.evaluation import Outcome


def steps(**tasks):
    """Return the metrics of as many steps as the longest list; None for a step without the task."""
    count = max(map(len, tasks.values()))
    return [
        {"step": i + 1}
        | {f"success/{name}": values[i] for name, values in tasks.items() if values[i] is not None}
        for i in range(count)
    ]


def rates(**of_agents):
    return {
        agent: {"sampled": {"success": success}, "greedy": {"success": 1.0}}
        for agent, success in of_agents.items()
    }


def test_the_newest_steps_are_compared_with_those_before():
    seen = overview(
        ["a", "b", "c", "d"],
        steps(
            a=[0.0, 0.0, 0.25, 0.5, 1.0],
            b=[1.0, 0.5, 0.5, 0.25, 0.25],
            c=[0.5, 0.5, 0.5, 0.55, 0.55],
            d=[None, None, 1.0, None, 0.0],
        ),
        {},
        every=2,
    )
    assert seen["compared"] == "Steps 4 to 5, compared with those before"
    assert seen["changes"] == [
        "d: success fell from 1.00 to 0.00",
        "a: success rose from 0.12 to 0.75",
        "b: success fell from 0.50 to 0.25",
    ]
    assert [task["now"] for task in seen["tasks"]] == [0.75, 0.25, 0.55, 0.0]
    assert seen["tasks"][3]["points"] == [(3.0, 1.0), (5.0, 0.0)]


@pytest.mark.parametrize(("count", "every"), [(0, 2), (1, 2), (2, 2), (5, 0)])
def test_without_steps_before_nothing_is_compared(count, every):
    seen = overview(["a"], steps(a=[0.0, 1.0, 0.0, 1.0, 1.0])[:count], {}, every=every)
    assert (seen["compared"], seen["changes"]) == ("", [])


def test_a_first_success_is_said_while_it_is_new():
    metrics = steps(a=[0.0, 0.0, 0.0, 0.05, 0.05, 0.0], b=[None] * 3 + [0.05] * 3)
    first = "a: solved for the first time, in step 4"
    assert overview("ab", metrics[:4], {}, every=2)["changes"] == [first]
    assert overview("ab", metrics[:5], {}, every=2)["changes"] == [first]
    assert overview("ab", metrics, {}, every=2)["changes"] == []


def test_at_the_end_the_evaluations_are_compared():
    summary = rates(untrained=0.2, trained=0.9) | {
        "task": "a",
        "seconds": {"setup": 1.0},
        "per_task": {"a": rates(random=0.1, untrained=0.2, trained=0.9), "b": rates(untrained=1)},
    }
    metrics = steps(a=[0.0, 1.0, 0.0], b=[1.0, 1.0, 0.0])
    seen = overview("ab", metrics, summary, every=1, is_over=True, changes=["7 of 8"])
    assert seen["compared"] == "The trained policy, compared with the untrained one"
    assert seen["changes"] == ["7 of 8", "a: success rose from 0.20 to 0.90"]
    assert seen["rates"] == {"untrained": {"success": 0.2}, "trained": {"success": 0.9}}
    assert list(seen["tasks"][0]["rates"]) == ["random", "untrained", "trained"]
    evaluated = overview(["a"], [], rates(policy=0.5), every=5, is_over=True)
    assert (evaluated["compared"], evaluated["changes"]) == ("", [])


def test_long_curves_are_averaged():
    (task,) = overview(["a"], steps(a=[0.0, 1.0] * 600), {}, every=5)["tasks"]
    assert len(task["points"]) == POINTS
    assert {success for _, success in task["points"]} == {0.5}
    assert task["points"][0][0] == sum(range(1, 21)) / 20
    assert task["now"] == 0.6  # of the steps themselves


def test_episodes_whose_end_has_changed():
    def outcomes(*solved):
        return [Outcome(Task("a", seed), bool(is_solved), 1) for seed, is_solved in solved]

    before = outcomes((1, 0), (2, 0), (3, 1), (4, 1), (5, 0))
    after = outcomes((1, 1), (2, 0), (3, 0), (4, 1), (6, 1))  # 5 was dropped, 6 before
    assert solved_now(before, after) == [
        "1 of 2 held-out episodes that failed before the training are solved now",
        "1 of 2 that were solved before it fail now",
    ]
    assert solved_now([], after) == solved_now(before, []) == []
