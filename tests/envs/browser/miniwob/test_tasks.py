"""BrowserGym's code on a recording of a page: its scripts, and its verdict on their values."""

import pytest

from envs.base import TaskError
from envs.browser.miniwob.tasks import Episode, Outcome, find_task, tasks
from envs.browser.server.tree import tree_text

pytest.importorskip("browsergym.miniwob", reason="needs BrowserGym: run `make setup`")


def values_of(episode, goal="Click.", state=(0, 0, None, False, 0, True)):
    """Return values that a page might give the scripts of the setup: the goal, and its state."""
    found = []
    for script, _ in episode.setup:
        if "getUtterance()" in script and "=>" in script:
            found.append(goal)
        else:
            found.append(list(state))
    return found


def test_all_tasks_and_their_names():
    assert len(tasks()) == 125
    assert find_task("miniwob.click-test") is find_task("click-test")
    with pytest.raises(TaskError, match=r"unknown task 'clik-test'; close names: .*click-test"):
        find_task("clik-test")


def test_setup_seeds_the_page_as_browsergym_does():
    import numpy as np

    episode = Episode(find_task("click-test"), 7)
    assert episode.url.startswith("file:///")
    assert episode.url.endswith("/miniwob/click-test.html")
    seeded = f"Math.seedrandom({np.random.RandomState(7).randint(0, 1000000)});"
    assert sum(seeded in script for script, _ in episode.setup) == 1
    assert [until for script, until in episode.setup if "WOB_TASK_READY}" in script] == []
    assert sum(until for _, until in episode.setup) == 1  # waits for the page to be ready
    # The clock that would end a slow model's episode is set to 1,000 seconds.
    assert any("core.EPISODE_MAX_TIME = 1000000;" in script for script, _ in episode.setup)


@pytest.mark.parametrize("goal", ["Click.", {"utterance": "Click.", "fields": []}])
def test_goal(goal):
    episode = Episode(find_task("click-test"), 0)
    assert episode.goal(values_of(episode, goal)) == "Click."


@pytest.mark.parametrize("name", ["click-menu-2", "use-colorwheel-2"])
def test_a_goal_that_is_read_twice(name):
    episode = Episode(find_task(name), 0)
    goals = iter(["first", "second"])
    values = [next(goals) if isinstance(v, str) else v for v in values_of(episode, "one")]
    assert episode.goal(values) == "second"


@pytest.mark.parametrize(
    ("raw", "done", "expected"),
    [
        (1, True, Outcome(True, True, 1.0, True)),
        (0.25, True, Outcome(False, True, 0.25, True)),
        (-1, True, Outcome(False, True, -1.0, False)),
        (0, False, Outcome(False, False, 0.0, False)),
    ],
)
def test_a_success_is_the_full_reward_and_browsergyms_verdict_is_kept(raw, done, expected):
    episode = Episode(find_task("click-test"), 0)
    state = [raw, raw, None, done, 1, True]
    assert episode.outcome(episode.url, [state]) == expected
    assert episode.outcome(episode.url, [state]) == expected  # can be called again


def test_another_page_ends_the_episode_without_a_reward():
    episode = Episode(find_task("click-test"), 0)
    assert episode.outcome("about:blank", []) == Outcome(False, True, 0.0, False)


def node(number, role, name, children=(), bid=None):
    properties = []
    if bid is not None:
        data = {"type": "string", "value": f"browsergym_id_{bid} "}
        properties = [{"name": "roledescription", "value": data}]
    return {
        "nodeId": str(number),
        "role": {"value": role},
        "name": {"value": name},
        "properties": properties,
        "childIds": [str(child) for child in children],
    }


def test_tree_text():
    tree = {
        "nodes": [
            node(1, "RootWebArea", "Page", [2]),
            node(2, "generic", "", [3], bid="4"),
            node(3, "button", "Click Me!", [4], bid="13"),
            node(4, "InlineTextBox", "Click Me!"),
        ]
    }
    lines = ["RootWebArea 'Page'", "\t[4] generic", "\t\t[13] button 'Click Me!'"]
    assert tree_text({"main": tree}) == "\n".join(lines)
