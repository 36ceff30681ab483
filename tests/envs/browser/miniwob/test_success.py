"""A success is the whole task: partly right answers to every task that pays for a part."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from envs.base import Task
from envs.browser.actions import Action, format_action
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.files import miniwob_url
from envs.browser.miniwob.names import MINIWOB_TASKS
from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.miniwob.success import PARTIAL, is_success
from envs.browser.server.playwright.page import Page
from envs.browser.server.session import Session
from envs.browser.server.slot import Slot

# What pays for nothing but the whole task: numbers, and choices between 1 and -1.
ALL_OR_NOTHING = re.compile(r"1(\.0)?|0|-[\d.]+|.*\? 1(\.0)? : -1(\.0)?")
# Calls of functions that assign the same variable, which is read there; a shape's random size.
READ_ELSEWHERE = {
    "rewardEpisode(bookAction, $bought)",
    "determineReward(generatedNumber, problemType, reqs)",
    "core.randf(0,1)",
}


def paid(task):
    """Return the expressions that a task's page may pay."""
    page = (Path(miniwob_url().removeprefix("file://")) / f"{task}.html").read_text()
    given = {call.split(", ")[0] for call in re.findall(r"core\.endEpisode\((.*?)\);", page)}
    for name in {"r", "reward", "score", "x"} & given:
        variable = "click_reward" if name == "x" else name
        values = re.findall(rf"\b{variable}\s*[-+]?= *([^=;][^;\n]*(?:\n *\|\|[^;]*)?)", page)
        given = given - {name} | {re.sub(r"\s+", " ", value) for value in values}
    return given


@pytest.mark.parametrize("task", sorted(MINIWOB_TASKS))
def test_the_table_names_the_tasks_that_pay_for_a_part(task):
    partial = {each for each in paid(task) - READ_ELSEWHERE if not ALL_OR_NOTHING.fullmatch(each)}
    assert bool(partial) == (task in PARTIAL), partial


@pytest.mark.parametrize(("task", "rule"), PARTIAL.items())
def test_a_tolerance_has_a_reason(task, rule):
    assert rule.pays
    assert bool(rule.tolerance) == (rule.least < 1)
    assert is_success(task, rule.least)
    assert not is_success(task, rule.least - 0.01)
    assert is_success("click-test", 1.0)
    assert not is_success("click-test", 0.99)


MARK = """
const circles = [...document.querySelectorAll('svg circle')].map(
    c => ({x: +c.getAttribute('cx'), y: +c.getAttribute('cy'), r: +c.getAttribute('r')}));
const degrees = (a, v, b) => {
    const turn = Math.atan2(a.y - v.y, a.x - v.x) - Math.atan2(b.y - v.y, b.x - v.x);
    return Math.abs(Math.atan2(Math.sin(turn), Math.cos(turn))) * 180 / Math.PI;
};
const reward = (x, y) => { %s };
let best = null;
for (let x = 1; x < 150; x++) for (let y = 1; y < 130; y++) {
    const off = Math.abs(reward(x, y) - wanted);
    if (best === null || off < best.off) best = {off, x, y};
}
document.querySelector('svg').dispatchEvent(
    new MouseEvent('click', {clientX: best.x, clientY: best.y + 50, bubbles: true}));
document.querySelector('#subbtn').click();
"""
"""Marks the whole pixel whose reward is nearest to `wanted`, and submits."""

HALF = "const c = {x: x - 0.5, y: y - 0.5};"  # how the page places a mark of radius 3.5
DISTANCES = {
    "bisect-angle": """
        const [v, a, b] = circles, all = degrees(a, v, b), c = {x, y};
        return (all - Math.max(degrees(a, v, c), degrees(b, v, c))) / (all / 2);""",
    "circle-center": f"""{HALF}
        const [o] = circles; return 1 - Math.hypot(c.x - o.x, c.y - o.y) / o.r;""",
    "find-midpoint": """
        const [a, b] = circles;
        return 1 - Math.hypot(x - (a.x + b.x) / 2, y - (a.y + b.y) / 2) / 30;""",
    "right-angle": """
        const [a, v] = circles, c = {x: x + 0.5, y: y + 0.5};
        return 1 - Math.abs(90 - degrees(a, v, c)) / 90;""",
}

COLOUR = """
const code = ui_utils.colorNameToHex((goal.match(/Select (\\w+) with/) || [])[1]
    || '') || goal.match(/#\\w{6}/)[0];
const red = parseInt(code.slice(1, 3), 16), changed = red + (red < 128 ? by : -by);
document.querySelector('#col').value = changed.toString(16).padStart(2, '0') + code.slice(3);
document.querySelector('#subbtn').click();
"""

DRAWN = """
document.querySelector('svg').insertAdjacentHTML('beforeend', '<path d="M0 0L60 60"/>');
const dot = document.querySelector('#circ');
const x = +dot.getAttribute('cx'), y = +dot.getAttribute('cy');
arrayPoints = %s;
document.querySelector('#controls button').click();
"""

PARTLY = {
    "ascending-numbers": """
        const click = e => e.dispatchEvent(new MouseEvent('click', {bubbles: true}));
        click(document.querySelector('svg text'));
        click(document.querySelector('svg rect'));
        click([...document.querySelectorAll('svg rect')].at(-1));""",
    "drag-shapes-2": """
        const wanted = goal.match(/all (\\w+)/)[1];
        const tag = {rectangles: 'rect', circles: 'circle', triangles: 'polygon'}[wanted];
        const shapes = [...document.querySelectorAll('svg rect, svg circle, svg polygon')]
            .filter(e => e.id !== 'shape-container');
        for (const shape of shapes.slice(1)) {
            const left = tag ? shape.tagName === tag : shape.getAttribute('fill') === wanted;
            const at = shape.getBBox();
            shape.setAttribute('transform', `translate(${(left ? 12 : 94) - at.x},${15 - at.y})`);
        }
        document.querySelector('#subbtn').click();""",
    "draw-circle": DRAWN % "[[x + 25, y], [x, y + 35], [x - 25, y], [x, y - 35]]",
    "draw-line": DRAWN
    % """goal.includes('horizontal')
        ? [[10, y + 30], [20, y + 30], [140, y + 30]] : [[x + 30, 10], [x + 30, 20], [x + 30, 140]]
    """,
    "find-greatest": """
        const cards = [...document.querySelectorAll('.card')];
        cards.sort((a, b) => a.textContent - b.textContent)[0].click();
        document.querySelector('#submit').click();""",
    "hot-cold": """
        const area = document.querySelector('#touch-area');
        const mouse = (kind, x, y) => area.dispatchEvent(
            new MouseEvent(kind, {clientX: x, clientY: y + 50, bubbles: true}));
        search: for (let x = 1; x < 160; x += 3) for (let y = 1; y < 125; y += 3) {
            mouse('mousemove', x, y);
            if (document.querySelector('#signal').className !== 'warm') continue;
            mouse('click', x, y);
            break search;
        }""",
}
"""Scripts that answer partly right, by task."""

SUBMIT = "document.querySelector('#subbtn').click();"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session():
    slot = Slot()
    session = Session(Page(await slot.browser(), miniwob_url()))
    await session.open()
    yield session
    await slot.stop()


async def answered(session, task, seed, script, **values):
    """Start an episode, run a script on its page, and return the outcome."""
    seen = await session.reset(task, seed)
    names = {"goal": seen["goal"], **values}
    constants = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
    await session.page.run(f"(0, eval)({json.dumps('{' + constants + script + '} 0')})")
    return await session.step(Action("noop"))


def verdict(outcome):
    """Return success by either rule, and the reward."""
    metadata = outcome["metadata"]
    return metadata["success"], metadata["success_browsergym"], outcome["reward"]


PART = (False, True, 0.0)
ALL = (True, True, 1.0)


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("task", PARTLY)
async def test_a_partly_right_answer_is_a_success_to_browsergym_alone(session, task):
    for seed in range(3):
        outcome = await answered(session, task, seed, PARTLY[task])
        assert outcome["done"]
        assert 0 < outcome["metadata"]["raw_reward"] < 1
        assert verdict(outcome) == PART


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("task", DISTANCES)
async def test_the_nearest_pixel_is_a_success_and_one_further_off_is_not(session, task):
    least = PARTIAL[task].least
    for seed in range(5):
        outcome = await answered(session, task, seed, MARK % DISTANCES[task], wanted=1.0)
        assert outcome["metadata"]["raw_reward"] > least
        assert verdict(outcome) == ALL
        off = await answered(session, task, seed, MARK % DISTANCES[task], wanted=least - 0.15)
        assert off["metadata"]["raw_reward"] == pytest.approx(least - 0.15, abs=0.1)
        assert verdict(off) == PART


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("task", ["use-colorwheel", "use-colorwheel-2"])
async def test_a_colour_is_a_success_within_two_percent(session, task):
    for seed in range(3):
        for by, wanted in ((0, ALL), (14, ALL), (17, PART), (120, PART)):
            outcome = await answered(session, task, seed, COLOUR, by=by)
            assert outcome["metadata"]["raw_reward"] == pytest.approx(1 - by / 255 / 3)
            assert verdict(outcome) == wanted


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_ticked(session):
    for seed in range(10):
        seen = await session.reset("click-checkboxes", seed)
        few = seen["goal"].count(",") == 0 and "nothing" not in seen["goal"]
        if few and seen["axtree_txt"].count("checkbox") > 2:
            outcome = await answered(session, "click-checkboxes", seed, SUBMIT)
            assert verdict(outcome) == PART
            return
    raise AssertionError("no seed asks for one box of three")


def solution(task, goal, elements):
    """Return the solver's actions on a page, of a task whose first page has all it takes."""
    actions = []
    with suppress(LookupError):
        while True:
            actions.append(format_action(SOLVERS[task](goal, elements, len(actions))))
    return actions


async def all_but_the_first(env, task):
    """Do what the solver does, without its first action."""
    for seed in range(10):  # until one asks for more than half of the boxes, say
        seen = await env.reset(Task(task, seed))
        actions = solution(task, seen.goal, env._elements)
        if len(actions) > 2:
            for action in actions[1:]:
                result = await env.step(action)
            return result
    raise AssertionError("no seed takes three actions")


async def a_wrong_detail(env, task):
    """Find the right person, and click on another detail than the solver."""
    seen = await env.reset(Task(task, 0))
    name = re.match(r"Find (\w+) in", seen.goal)[1]
    while f"heading {name!r}" not in seen.page:
        seen = (await env.step(env.demonstrate())).observation
    links = re.findall(r"link '[^<>']{2,}' \[(\d+)\]", seen.page)
    right = env.demonstrate()
    return await env.step(next(f"click('{each}')" for each in links if each not in right))


@pytest.mark.browser
@pytest.mark.parametrize(
    ("task", "answer", "raw_reward"),
    [
        ("click-checkboxes", all_but_the_first, None),
        ("click-checkboxes-large", all_but_the_first, None),
        ("click-checkboxes-soft", all_but_the_first, None),
        ("click-checkboxes-transfer", all_but_the_first, None),
        ("odd-or-even", all_but_the_first, 1 / 3),
        ("phone-book", a_wrong_detail, 0.4),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
async def test_the_agent_gets_nothing_for_a_part_but_where_that_is_wanted(
    server, task, answer, raw_reward, partial
):
    env = BrowserEnv(server.url, partial_reward=partial)
    result = await answer(env, task)
    raw = result.info["raw_reward"]
    assert 0 < raw < 1
    assert raw == pytest.approx(raw_reward or raw)
    assert (result.success, result.info["success_browsergym"]) == (False, True)
    assert (result.done, result.reward) == (True, raw if partial else 0.0)
    await env.close()


@pytest.mark.browser
async def test_a_partial_reward_is_never_negative_and_whole_for_the_whole_task(server):
    env = BrowserEnv(server.url, partial_reward=True)
    seen = await env.reset(Task("click-test-2", 1))
    (wrong,) = re.findall(r"button 'TWO' \[(\d+)\]", seen.page)
    result = await env.step(f"click('{wrong}')")
    assert (result.info["raw_reward"], result.reward, result.success) == (-1.0, 0.0, False)
    await env.reset(Task("click-test-2", 1))
    result = await env.step("noop('1')")  # not an action
    assert result.info == {"raw_reward": 0.0, "success_browsergym": False}
    result = await env.step(env.demonstrate())
    assert (result.info["raw_reward"], result.reward, result.success) == (1.0, 1.0, True)
    await env.close()
