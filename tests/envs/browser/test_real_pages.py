"""Every page of `pages/`: what the model reads there, and an action that works.

`pages/page_table.py` holds what is expected.
"""

import asyncio
import difflib
import re
from itertools import islice

import pytest

from envs.base import EnvError, Task
from envs.browser.env import BrowserEnv
from tests.envs.browser.pages.page_table import PAGES

pytestmark = pytest.mark.browser

SESSIONS = 6
GROUPS = sorted({name.partition("/")[0] for name in PAGES})


@pytest.mark.parametrize("group", GROUPS)
async def test_pages(group, sites):
    names = [name for name in PAGES if name.startswith(f"{group}/")]
    played = (play_all(sites.url, names[i::SESSIONS]) for i in range(SESSIONS))
    problems = [problem for lane in await asyncio.gather(*played) for problem in lane]
    assert not problems, "\n\n".join(["", *problems])


async def play_all(url, names):
    """Play pages one after another in one session; return what went wrong, a text per page."""
    problems, env = [], BrowserEnv(url)
    for name in names:
        try:
            problems += [f"{name}: {problem}" for problem in await play(env, name)]
        except EnvError as error:
            problems.append(f"{name}: {error}")
            await env.close()
            env = BrowserEnv(url)
    await env.close()
    return problems


async def play(env, name):
    page = PAGES[name]
    observation = await env.reset(Task(name.replace("/", "."), 0))
    problems = difference(page.text, observation.page)
    for i, step in enumerate(page.do):
        action, _, error = step.partition(" -> ")
        try:
            result = await env.step(with_ids(action, observation.page))
        except LookupError as missing:
            return [*problems, f"{action}: {missing}"]
        observation = result.observation
        got = re.sub(r"no element \w+", "no element [*]", observation.error)
        if got != error:
            problems.append(f"{action}: expected the error {error!r}, got {got!r}")
        if result.reward != (i == len(page.do) - 1):
            problems.append(f"{action}: the reward is {result.reward:g} on\n{observation.page}")
    if page.then is not None:
        problems += difference(page.then, observation.page)
    return problems


def with_ids(action, page):
    """Return an action with the id of a line for each `{role 'name'}`."""

    def quoted_id(match):
        start, _, number = re.fullmatch(r"(.*?)( (\d))?", match[1]).groups()
        lines = re.finditer(rf"^{re.escape(start)}.* \[(\w+)\]", page, re.MULTILINE)
        line = next(islice(lines, int(number or 1) - 1, None), None)
        if line is None:
            raise LookupError(f"there is no {match[1]} on\n{page}")
        return repr(line[1])

    return re.sub(r"\{(.*?)\}", quoted_id, action)


def difference(expected, page):
    """Return the differing lines as a list of one text, or of none."""
    lines = [
        re.sub(r" \[\w+\](?=$|, \w| at | with | from )", " [*]", line) for line in page.splitlines()
    ]
    wanted = [line.strip() for line in expected.strip().splitlines()]
    changes = difflib.ndiff(wanted, lines)
    if wanted == lines:
        return []
    return ["the page differs (- expected, + got):\n" + "\n".join(changes)]


async def test_an_element_that_was_replaced_since_the_look(sites):
    env = BrowserEnv(sites.url)
    old = await env.reset(Task("held", 0))
    sites.site.release()
    await asyncio.to_thread(sites.site.wait_for, "GET /replaced")
    result = await env.step(with_ids("click({button 'Buy'})", old.page))
    assert result.observation.error.startswith("click failed: ")
    assert result.observation.page.startswith("text 'New price'")
    result = await env.step(with_ids("click({button 'Buy'})", result.observation.page))
    assert result.reward == 1.0
    await env.close()
