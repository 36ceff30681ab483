"""The same actions on BrowserGym by itself and on our server lead to the same answers."""

import random
from dataclasses import replace

import pytest

from envs.browser.actions import parse_action
from scripts.equivalence import (
    DIFFERENT,
    EQUAL,
    UNREPEATABLE,
    differences,
    judge,
    run_ours,
)
from scripts.equivalence_worker import RANDOM_STEPS, TEXTS, Run, State, choose, run_plain

SOLVED = [
    *("buy-ticket", "choose-list", "click-button", "click-collapsible", "click-dialog"),
    *("click-dialog-2", "click-link", "click-menu", "click-option", "click-tab"),
    *("click-tab-2-easy", "click-test", "click-test-2", "drag-box", "enter-date", "enter-text"),
    *("enter-time", "find-word", "focus-text", "focus-text-2", "login-user", "read-table"),
    *("scroll-text-2", "simple-algebra", "simple-arithmetic", "unicode-test", "use-autocomplete"),
    *("use-autocomplete-nodelay", "use-spinner"),
]
CLICKED = ["email-inbox", "tic-tac-toe"]
"""Tasks without a solver, clicked on by chance."""

PAGE = "RootWebArea 'A', focused\n\t[12] button 'Yes'"
RUN = Run(
    "click-test",
    3,
    actions=["click('12')", "click('12')"],
    states=[State("Go.", PAGE), State("Go.", PAGE), State("Go.", PAGE, 1.0, True)],
)


def changed(step, **fields):
    states = list(RUN.states)
    states[step] = replace(states[step], **fields)
    return replace(RUN, states=states)


def test_equal_runs_do_not_differ():
    assert differences(RUN, changed(0)) == []


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
        (replace(RUN, states=RUN.states[:2]), "seed 3: 2 states, not 3"),
        (replace(RUN, broken="died"), "seed 3: died, not no error"),
    ],
)
def test_each_difference_is_told(other, text):
    assert differences(RUN, other) == [text]


def test_pages_that_differ_in_their_depth_alone_differ():
    assert differences(RUN, changed(0, page=PAGE.replace("\t", "\t\t")))


def test_a_task_that_differs_from_itself_is_never_equal():
    other = changed(1, page="")
    assert judge([RUN], [RUN], [RUN])["result"] == EQUAL
    assert judge([RUN], [RUN], [other])["result"] == DIFFERENT
    assert judge([RUN], [other], [RUN])["result"] == UNREPEATABLE
    assert judge([RUN], [other], [other])["result"] == UNREPEATABLE
    assert judge([RUN], [RUN, other], [other])["result"] == UNREPEATABLE
    two = [RUN, replace(RUN, seed=4)]
    assert judge(two, two, two)["result"] == EQUAL
    assert judge(two, two, [RUN, replace(other, seed=4)])["result"] == DIFFERENT


def test_a_run_survives_the_pipe():
    assert Run.from_json(RUN.to_json()) == RUN


def test_actions_are_the_solvers_or_else_clicks_by_the_same_chance():
    def chosen(run, clickable=("12", "13", "14")):
        return choose(run, clickable, random.Random(run.task))

    assert (
        chosen(Run("click-test", 0, states=[State("", "[9] button 'Click Me!'")])) == "click('9')"
    )
    for task in ("click-test", "count-shape"):  # a solver that finds nothing there, and none
        run = Run(task, 0, states=RUN.states)
        assert chosen(run) in ("click('12')", "click('13')", "click('14')")
        assert chosen(run) == chosen(run)
        assert chosen(run, ()) is None
        assert chosen(replace(run, actions=["noop()"] * RANDOM_STEPS)) is None


def by_chance(page):
    run = Run("click-test", 0, by_chance=True, states=[State("", page)])
    actions = [parse_action(choose(run, ["3"], random.Random(seed)) or "") for seed in range(200)]
    return {name: [action for action in actions if action.name == name] for name in TEXTS}


def test_by_chance_any_action_on_any_control():
    page = "[9] option 'B', selected=False\n[10] textbox ''\n[11] generic ''\n\tStaticText 'a'"
    drawn = by_chance(page)
    assert all(drawn.values())
    assert {bid for of_kind in drawn.values() for a in of_kind for bid in a.ids} == {"3", "9", "10"}
    assert {action.args[1] for action in drawn["press"]} == set(TEXTS["press"])
    assert {action.args[1] for action in drawn["select_option"]} == {"B"}
    assert {action.args[1] for action in by_chance("")["select_option"]} == {"none"}


@pytest.fixture(scope="module")
def plain():
    """BrowserGym's own run of each case, played once for all tests."""
    return {run.task: run for run in run_plain([Run(task, 0) for task in SOLVED + CLICKED])}


@pytest.mark.browser
@pytest.mark.parametrize("task", SOLVED + CLICKED)
async def test_our_server_answers_as_browsergym_does(server, plain, task):
    expected = plain[task]
    assert (expected.broken, len(expected.actions) > 0) == ("", True)
    assert expected.states[-1].reward == 1 or task in CLICKED
    (ours,) = await run_ours(server.url, [expected])
    assert differences(expected, ours) == []
