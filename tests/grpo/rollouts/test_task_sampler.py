from collections import Counter

import pytest

from envs.base import Task
from grpo.rollouts.task_sampler import HELD_OUT, RECENT, REMEMBERED, TaskSampler
from grpo.types import Episode, Group


def group(task, *rewards):
    return Group(task, tuple(Episode(task, (), r, r > 0, "done") for r in rewards))


def test_tasks_are_distinct_and_never_held_out():
    sampler = TaskSampler(["click-test"], seed=0)
    first, second = sampler.draw(0, 50), sampler.draw(1, 50)
    assert first == TaskSampler(["click-test"], seed=0).draw(0, 50)
    assert len({*first, *second, *sampler.draw(0, 50, attempt=1)}) == 150
    assert first != TaskSampler(["click-test"], seed=1).draw(0, 50)
    assert all(task.name == "click-test" and 0 <= task.seed < HELD_OUT for task in first)


def test_tasks_are_drawn_with_equal_probability():
    names = Counter(task.name for task in TaskSampler(["a", "b", "c"]).draw(3, 3000))
    assert sorted(names) == ["a", "b", "c"]
    assert all(abs(count - 1000) < 120 for count in names.values())  # 4.6 standard deviations


def test_seeds_solved_sometimes_are_replayed_by_their_variance():
    never, half, rarely, always = (Task("t", seed) for seed in range(4))
    outcomes = {never: [0, 0], half: [1, 0], rarely: [0] * 9 + [1], always: [1, 1]}
    sampler = TaskSampler(["t"], "learnability")
    plain = sampler.draw(0, 2)
    assert plain == TaskSampler(["t"]).draw(0, 2)  # nothing is known yet
    sampler.observe(group(task, *rewards) for task, rewards in outcomes.items())
    drawn = [sampler.draw(step, 2) for step in range(4000)]
    first = Counter(tasks[0] for tasks in drawn)
    assert set(first) == {half, rarely}
    share = 0.25 / (0.25 + 0.09)  # p (1 - p)
    assert abs(first[half] / 4000 - share) < 0.04  # 5.7 standard deviations
    assert all(tasks[1] == TaskSampler(["t"]).draw(step, 2)[1] for step, tasks in enumerate(drawn))


def test_no_seed_is_replayed_twice_in_a_step():
    sampler = TaskSampler(["t"], "learnability")
    sampler.observe(group(Task("t", seed), 0, 1) for seed in range(3))
    tasks = sampler.draw(0, 20)
    assert sum(task.seed < 3 for task in tasks) == 3
    assert len(set(tasks)) == 20


def test_learned_seeds_and_the_oldest_are_forgotten():
    sampler = TaskSampler(["t"], "learnability")
    sampler.observe([group(Task("t", 5), 0, 1)])
    assert sampler.state()["seeds"] == [["t", 5, 0.5]]
    sampler.observe([group(Task("t", 5), 1, 1)])
    assert sampler.state()["seeds"] == []
    sampler.observe(group(Task("t", seed), 0, 1) for seed in range(REMEMBERED + 2))
    assert [seed for _, seed, _ in sampler.state()["seeds"]] == list(range(2, REMEMBERED + 2))


def play(sampler, name, *rewards, times=RECENT, first=0):
    sampler.observe(group(Task(name, first + i), *rewards) for i in range(times))


def shares(sampler, draws=4000):
    """Return each task's share of the draws; six standard deviations are 0.05."""
    names = Counter(task.name for task in sampler.draw(0, draws))
    return {name: names[name] / draws for name in sampler.names}


def near(expected):
    return pytest.approx(expected, abs=0.05)


def test_tasks_are_drawn_by_their_variance_and_none_dies_out():
    sampler = TaskSampler(["never", "always", "tenth", "new"], "learnability")
    play(sampler, "never", 0, 0)
    play(sampler, "always", 1, 1)
    play(sampler, "tenth", *[1] + [0] * 9)
    sampler.load_state({**sampler.state(), "seeds": []})  # only the tasks' weights
    total = 0.05 + 0.05 + 0.09 + 0.25
    expected = {"never": 0.05, "always": 0.05, "tenth": 0.09, "new": 0.25}
    assert shares(sampler) == near({name: w / total for name, w in expected.items()})


def test_success_is_averaged_over_the_latest_groups():
    sampler = TaskSampler(["a", "b"], "learnability")
    play(sampler, "a", 0, 0)
    play(sampler, "a", 1, 0, times=1)
    rate, _ = sampler.state()["rates"]["a"]
    assert rate == pytest.approx(0.5 / RECENT)
    play(sampler, "a", 1, 1, times=60)
    assert sampler.state()["rates"]["a"][0] == pytest.approx(1, abs=0.01)


def test_a_curriculum_advances_when_a_task_is_mastered():
    sampler = TaskSampler(["a", "b", "c"], "curriculum")
    assert shares(sampler) == {"a": 1, "b": 0, "c": 0}
    play(sampler, "a", 1, 1, times=RECENT - 1)
    assert shares(sampler) == {"a": 1, "b": 0, "c": 0}  # a few groups can be luck
    play(sampler, "a", 1, 1, times=1, first=RECENT)
    assert shares(sampler) == near({"a": 0.25, "b": 0.75, "c": 0})
    play(sampler, "c", 1, 1)
    play(sampler, "b", 1, 1, 0, 0)
    assert shares(sampler) == near({"a": 0.25, "b": 0.75, "c": 0})
    play(sampler, "b", 1, 1, times=60)
    assert shares(sampler) == near({"a": 1 / 6, "b": 1 / 6, "c": 4 / 6})
    play(sampler, "a", 0, 0)  # forgotten: it is practised again
    assert shares(sampler) == {"a": 1, "b": 0, "c": 0}


def test_an_unknown_kind():
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'hardest'"):
        TaskSampler(["t"], "hardest")


@pytest.mark.parametrize("kind", ["uniform", "learnability", "curriculum"])
def test_state_round_trip(kind):
    one, other = TaskSampler(["t", "u"], kind), TaskSampler(["t", "u"], kind)
    one.observe(group(Task("t", seed), 0, 1, 1) for seed in range(30))
    one.observe(group(Task("u", seed), 1, 1, 1) for seed in range(30))
    other.load_state(one.state())
    assert one.draw(7, 10) == other.draw(7, 10)
