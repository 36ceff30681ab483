"""Our server and plain BrowserGym lead the same actions to the same states."""

import random
from dataclasses import replace

import pytest

from envs.browser.actions import parse_action
from envs.browser.server.local import LocalServer
from scripts.equivalence import (
    DIFFERENT,
    EQUAL,
    UNREPEATABLE,
    differences,
    judge,
    play_on_server,
)
from scripts.equivalence_worker import (
    RANDOM_STEPS,
    TEXTS,
    Episode,
    State,
    choose,
    play_on_browsergym,
)

SOLVED = [
    *("buy-ticket", "choose-list", "click-button", "click-collapsible", "click-dialog-2"),
    *("click-link", "click-menu", "click-option", "click-tab", "drag-box", "enter-date"),
    *("enter-text", "login-user", "read-table", "scroll-text-2", "use-autocomplete"),
]
"""One task for each kind of page; docs/equivalence.md is the comparison of all."""
CLICKED = ["email-inbox", "tic-tac-toe"]
"""Tasks without a solver, played by random clicks."""

PAGE = "RootWebArea 'A', focused\n\t[12] button 'Yes'"
EPISODE = Episode(
    "click-test",
    3,
    actions=["click('12')", "click('12')"],
    states=[State("Go.", PAGE), State("Go.", PAGE), State("Go.", PAGE, 1.0, True)],
)


def changed(step, **fields):
    states = list(EPISODE.states)
    states[step] = replace(states[step], **fields)
    return replace(EPISODE, states=states)


def test_equal_episodes_do_not_differ():
    assert differences(EPISODE, changed(0)) == []


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (changed(0, goal="Stop."), "seed 3, reset: goal 'Stop.', not 'Go.'"),
        (changed(2, reward=0.0), "seed 3, click('12'): reward 0.0, not 1.0"),
        (changed(2, done=False), "seed 3, click('12'): done False, not True"),
        (changed(1, failed=True), "seed 3, click('12'): failed True, not False"),
        (
            changed(1, page=PAGE.replace("Yes", "No")),
            "seed 3, click('12'): page has [12] button 'No', not [12] button 'Yes'",
        ),
        (
            changed(1, page=PAGE + "\n\t[13] link 'B'"),
            "seed 3, click('12'): page has [13] link 'B', not these lines",
        ),
        (replace(EPISODE, states=EPISODE.states[:2]), "seed 3: 2 states, not 3"),
        (replace(EPISODE, broken="died"), "seed 3: died, not no error"),
    ],
)
def test_each_difference_is_described(other, text):
    assert differences(EPISODE, other) == [text]


def test_indentation_counts_as_a_difference():
    assert differences(EPISODE, changed(0, page=PAGE.replace("\t", "\t\t")))


def test_a_task_that_is_not_repeatable_is_never_equal():
    other = changed(1, page="")
    assert judge([EPISODE], [EPISODE], [EPISODE])["result"] == EQUAL
    assert judge([EPISODE], [EPISODE], [other])["result"] == DIFFERENT
    assert judge([EPISODE], [other], [EPISODE])["result"] == UNREPEATABLE
    assert judge([EPISODE], [other], [other])["result"] == UNREPEATABLE
    assert judge([EPISODE], [EPISODE, other], [other])["result"] == UNREPEATABLE
    two = [EPISODE, replace(EPISODE, seed=4)]
    assert judge(two, two, two)["result"] == EQUAL
    assert judge(two, two, [EPISODE, replace(other, seed=4)])["result"] == DIFFERENT


def test_an_episode_survives_json():
    assert Episode.from_json(EPISODE.to_json()) == EPISODE


def test_actions_are_the_solvers_or_else_reproducible_random_clicks():
    def chosen(episode, clickable=("12", "13", "14")):
        return choose(episode, clickable, random.Random(episode.task))

    assert (
        chosen(Episode("click-test", 0, states=[State("", "[9] button 'Click Me!'")]))
        == "click('9')"
    )
    for task in ("click-test", "count-shape"):  # a solver that finds nothing there, and no solver
        episode = Episode(task, 0, states=EPISODE.states)
        assert chosen(episode) in ("click('12')", "click('13')", "click('14')")
        assert chosen(episode) == chosen(episode)
        assert chosen(episode, ()) is None
        assert chosen(replace(episode, actions=["noop()"] * RANDOM_STEPS)) is None


def draw_actions(page):
    episode = Episode("click-test", 0, random=True, states=[State("", page)])
    actions = [
        parse_action(choose(episode, ["3"], random.Random(seed)) or "") for seed in range(200)
    ]
    return {name: [action for action in actions if action.name == name] for name in TEXTS}


def test_random_play_draws_any_action_on_any_control():
    page = "[9] option 'B', selected=False\n[10] textbox ''\n[11] generic ''\n\tStaticText 'a'"
    drawn = draw_actions(page)
    assert all(drawn.values())
    assert {bid for of_kind in drawn.values() for a in of_kind for bid in a.ids} == {"3", "9", "10"}
    assert {action.args[1] for action in drawn["press"]} == set(TEXTS["press"])
    assert {action.args[1] for action in drawn["select_option"]} == {"B"}
    assert {action.args[1] for action in draw_actions("")["select_option"]} == {"none"}


@pytest.fixture(scope="module")
def server():
    server = LocalServer()
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def plain():
    """BrowserGym's episode of each task, played once for all tests."""
    return {
        episode.task: episode
        for episode in play_on_browsergym([Episode(task, 0) for task in SOLVED + CLICKED])
    }


@pytest.mark.browser
@pytest.mark.parametrize("task", SOLVED + CLICKED)
async def test_our_server_equals_browsergym(server, plain, task):
    expected = plain[task]
    assert (expected.broken, len(expected.actions) > 0) == ("", True)
    assert expected.states[-1].reward == 1 or task in CLICKED
    (ours,) = await play_on_server(server.url, [expected])
    assert differences(expected, ours) == []


@pytest.mark.browser
async def test_a_part_of_a_task_is_a_reward_of_1_to_browsergym_and_that_is_compared(server):
    (solved,) = await play_on_server(server.url, [Episode("odd-or-even", 0)])
    partly = Episode("odd-or-even", 0, actions=solved.actions[1:], states=solved.states[:1])
    (plain,) = play_on_browsergym([partly], processes=1)
    (ours,) = await play_on_server(server.url, [partly])
    assert plain.states[-1].reward == 1
    assert differences(plain, ours) == []
