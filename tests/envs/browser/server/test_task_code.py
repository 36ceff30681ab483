"""The code of users' tasks: a mistake is a `TaskError` that names the line, the rest `EnvError`."""

import re

import pytest

from envs.base import EnvError, Task, TaskError
from envs.browser.env import BrowserEnv
from envs.browser.server.local import LocalServer

pytestmark = pytest.mark.browser

TASKS = """\
from envs.browser import Folder, WebTask


class _Task(WebTask):
    site = Folder("site")

    async def setup(self, page, rng):
        await page.goto(self.url)
        return "Press it."

    async def evaluate(self, page):
        return False


class Asserts(_Task):
    async def setup(self, page, rng):
        assert await page.get_by_text("Nobody").count()


class AssertsWithText(_Task):
    async def setup(self, page, rng):
        assert await page.get_by_text("Nobody").count(), "nobody is there"


class Waits(_Task):
    async def setup(self, page, rng):
        await page.goto(self.url)
        await page.get_by_text("Nobody").click(timeout=50)


class Divides(_Task):
    async def setup(self, page, rng):
        return 1 / 0


class NoGoal(_Task):
    async def setup(self, page, rng):
        await page.goto(self.url)


class ForgetsAwait(_Task):
    async def setup(self, page, rng):
        page.goto(self.url)
        return "Press it."


class WritesItsPage(_Task):
    async def setup(self, page, rng):
        await page.set_content("<button>Press</button>")
        return "Press it."


class EvaluatesToNone(_Task):
    async def evaluate(self, page):
        return None


class EvaluatesWrongly(_Task):
    async def evaluate(self, page):
        return self.nothing
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "site").mkdir()
    (folder / "site" / "index.html").write_text("<!doctype html><button>Press</button>")
    (folder / "tasks.py").write_text(TASKS)
    server = LocalServer(workers=1, max_sessions=2, task_file=str(folder / "tasks.py"))
    yield server.start()
    server.close()


def line(text):
    """Return the number of the line that holds a text."""
    return 1 + TASKS[: TASKS.index(text)].count("\n")


@pytest.mark.parametrize(
    ("name", "kind", "at", "message"),
    [
        ("Asserts", EnvError, "    assert", "setup of Asserts failed, line {}: AssertionError"),
        ("AssertsWithText", EnvError, '"nobody', "failed, line {}: nobody is there"),
        ("Waits", EnvError, "timeout=50", "setup of Waits failed, line {}: Timeout 50ms exceeded"),
        ("Divides", TaskError, "1 / 0", "task 'Divides' failed: setup, line {}: ZeroDivisionError"),
        ("NoGoal", TaskError, "", "setup must return the goal as a text, got None"),
        ("ForgetsAwait", TaskError, "", "setup left the page empty: does it await page.goto(...)?"),
    ],
)
async def test_a_setup_that_fails(url, name, kind, at, message):
    env = BrowserEnv(url)
    with pytest.raises(kind, match=re.escape(message.format(line(at)))):
        await env.reset(Task(name, 0))
    await env.close()


async def test_a_page_without_an_address(url):
    env = BrowserEnv(url)
    assert "button 'Press'" in (await env.reset(Task("WritesItsPage", 0))).page
    await env.close()


@pytest.mark.parametrize(
    ("name", "at", "message"),
    [
        ("EvaluatesToNone", "", "evaluate must return a bool or Outcome, got None"),
        ("EvaluatesWrongly", "self.nothing", "failed: evaluate, line {}: AttributeError"),
    ],
)
async def test_an_evaluation_that_fails(url, name, at, message):
    env = BrowserEnv(url)
    await env.reset(Task(name, 0))
    with pytest.raises(TaskError, match=re.escape(message.format(line(at)))):
        await env.step("noop()")
    await env.close()
