"""Recording the example sites from the first page to the file, and what may come in between."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.base import Task, TaskError
from envs.browser.env import BrowserEnv
from envs.browser.record.command import record
from envs.browser.server.local import LocalServer
from envs.demonstrations import Demonstration, append_demonstration, read_demonstrations
from tests.envs.browser.record.person import Person, named

ROOT = Path(__file__).parents[4]
TODO = ROOT / "examples/sites/todo/tasks.py"
SHOP = ROOT / "examples/sites/shop/tasks.py"


def quotes(line):
    return re.findall(r'"([^"]+)"', line)


async def fill(person, name, text):
    await person.click(named(name))
    await person.type(text)


async def choose(person, name, keys):
    """Choose by the keyboard in a date field or a list, again while it shows nothing.

    On a busy machine all keys of a date were lost once, in a page that had just come.
    """
    for _ in range(5):
        await person.run(f"{named(name)}.focus()")
        await person.type(keys)
        if await person.run(f"{named(name)}.value"):
            return
    raise AssertionError(f"{name} stays empty")


async def sign_in(r, email, password):
    await fill(r.person, "Email", email)
    await fill(r.person, "Password", password)
    await r.person.click(named("Sign in") + ".form.querySelector('button')")


async def add_to_cart(r, product):
    await r.person.click(named(product))
    await r.line("click(")
    await r.person.click(named("Add to cart"))


async def buy(r, product, date, time):
    await fill(r.person, "Search", product)
    await r.person.key("Enter")
    await r.line("press(")
    await r.person.click(named(product))
    await r.line("click(")
    await r.person.click(named("Add to cart"))
    await r.line("click(")
    await r.person.click(named("Check out"))
    await r.line("click(")
    year, month, day = date.split("-")
    await choose(r.person, "Date", month + day + year)
    await choose(r.person, "Time", time[0])
    await r.person.click(named("Place order"))


SHOWN = {"SignIn": sign_in, "AddToCart": add_to_cart, "Buy": buy}


@pytest.fixture(scope="module")
def shop(recording, tmp_path_factory):
    """The file of a recording of three of the shop's tasks."""
    output = tmp_path_factory.mktemp("shop") / "demos.jsonl"

    async def show():
        async with recording(SHOP, list(SHOWN), output) as r:
            for name, gestures in SHOWN.items():
                await gestures(r, *quotes(await r.ready(name)))
                await r.line("kept")
            await r.work

    asyncio.run(show())
    return output


def test_the_shop_is_shown_in_the_actions_of_a_policy(shop):
    sign_in, add, buy = read_demonstrations(shop)
    assert [re.sub(r"'\w+'(?=[,)])", "_", text, count=1) for text in buy.actions] == [
        f"fill(_, {quotes(buy.goal)[0]!r})",
        "press(_, 'Enter')",
        *["click(_)"] * 3,
        f"fill(_, {quotes(buy.goal)[1]!r})",
        f"select_option(_, {quotes(buy.goal)[2]!r})",
        "click(_)",
    ]
    assert (len(sign_in.actions), len(add.actions)) == (3, 2)
    assert [each.source for each in (sign_in, add, buy)] == ["record"] * 3
    assert Path(add.task_file) == SHOP


def test_the_shop_s_demonstrations_succeed_on_a_server_as_in_training(shop):
    async def play(url):
        env = BrowserEnv(url)
        for each in read_demonstrations(shop):
            observation = await env.reset(each.task)
            assert observation.goal == each.goal
            for text, page in zip(each.actions, each.pages, strict=True):
                assert observation.page == page
                result = await env.step(text)
                observation = result.observation
            assert result.success
            assert result.reward == 1.0
        await env.close()

    server = LocalServer(workers=1, max_sessions=1, task_file=str(SHOP))
    try:
        asyncio.run(play(server.start()))
    finally:
        server.close()


async def test_undo_failures_skips_and_seeds_that_the_file_has(recording, tmp_path):
    output = tmp_path / "demos.jsonl"
    append_demonstration(output, Demonstration(Task("AddTodo", 1), "shown before", ("noop()",)))
    async with recording(TODO, ["AddTodo", "DeleteTodo"], output, seeds=range(1, 9)) as r:
        (item,) = quotes(await r.ready("AddTodo", "seed 2"))
        await fill(r.person, "Text", "a mistake")
        await r.person.key("Tab")
        await r.line("fill(", "a mistake")
        await r.person.key("F8")
        await r.line("undone: 0 actions")
        await r.person.sit_down()
        assert await r.person.run(f"{named('Text')}.value") == ""
        await fill(r.person, "Text", f"{item} twice")
        await r.person.click(named("Add"))
        await r.line("not kept: not done after 2 actions")
        await r.line("ready")
        assert len(read_demonstrations(output)) == 1
        await r.person.sit_down()
        await fill(r.person, "Text", item)
        await r.person.key("Tab")
        await r.line("fill(")
        await r.person.click("document.querySelector('h1')")
        await r.line("not recorded")
        await r.person.sit_down(at_bar=True)
        await r.person.click("undo")  # what is no action, and nothing else
        await r.line("undone: 1 action ")
        await r.person.sit_down()
        assert await r.person.run(f"{named('Text')}.value") == item
        await r.person.click(named("Add"))
        await r.line("kept: 2 actions")
        await r.ready("DeleteTodo", "seed 1")
        await r.person.key("F9")
        (item,) = quotes(await r.ready("DeleteTodo", "seed 2"))
        await r.person.click(named(f"Delete {item}"))
        await r.line("kept")
        await r.work
    _, add, delete = read_demonstrations(output)
    assert (add.task, delete.task) == (Task("AddTodo", 2), Task("DeleteTodo", 2))
    assert len(add.actions) == 2
    assert add.pages[1].count("value=") == 1


async def test_a_window_that_is_closed_ends_the_recording_and_loses_nothing(recording, tmp_path):
    output = tmp_path / "demos.jsonl"
    async with recording(TODO, ["CompleteTodo"], output, wanted=9) as r:
        (item,) = quotes(await r.ready("seed 0"))
        await r.person.click(named(f"Mark {item} as done"))
        await r.line("kept")
        await r.ready("seed 1")
        await r.person.send("Page.close")
        await r.line("closed")
        await r.line("1 demonstration added")
        await r.work
    assert len(read_demonstrations(output)) == 1


def test_ctrl_c_ends_the_command_with_one_line_and_loses_nothing(tmp_path):
    output = tmp_path / "demos.jsonl"
    port = 9200 + os.getpid() % 700
    command = [sys.executable, "-m", "grpo", "record", f"{TODO}:DeleteTodo", "-o", str(output)]
    command += ["-n", "2", "--debugging-port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        line = next(line for line in process.stdout if ", seed 0" in line)

        async def click():
            person = Person(port)
            await person.sit_down()
            await person.click(named(f"Delete {quotes(line)[0]}"))
            await person.leave()

        asyncio.run(click())
        next(line for line in process.stdout if "seed 1" in line)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the driver gets it too
        rest, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert rest.strip() == f"1 demonstration added to {output}"
    assert errors == ""
    assert process.returncode == 130
    assert len(read_demonstrations(output)) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["click-test"], "expected a file of tasks such as site/tasks.py, got 'click-test'"),
        ([f"{TODO}:Nothing"], "unknown task 'Nothing'; close names: "),
        ([f"{TODO}:AddTodoHeldOut"], "task 'AddTodoHeldOut' is held out: nothing of it may be "),
        ([str(TODO), "-n", "0"], "-n must be at least 1, got 0"),
        ([str(TODO), "--seed", "1000000"], "--seed must be from 0 to 999999"),
        ([str(TODO), "-o", "README.md"], "README.md, line 1: expected a JSON object"),
        ([str(TODO), "-o", "docs"], "Is a directory: 'docs'"),
    ],
)
def test_bad_input_is_one_line(arguments, error, capsys, monkeypatch):
    from grpo.cli import main

    monkeypatch.chdir(ROOT)
    assert main(["record", *arguments]) in (1, 2)
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert error in line
    assert line.count("\n") == 1
    assert not (ROOT / "demos.jsonl").exists()


def test_without_a_display_one_line_says_what_is_missing(tmp_path, capsys, monkeypatch):
    from grpo.cli import main

    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["record", str(TODO), "-o", str(tmp_path / "demos.jsonl")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: a visible browser needs ")
    assert line.count("\n") == 1


async def test_seeds_that_run_out_are_an_error(tmp_path):
    output = tmp_path / "demos.jsonl"
    append_demonstration(output, Demonstration(Task("AddTodo", 0), "shown before", ("noop()",)))
    with pytest.raises(TaskError, match="no seeds of 'AddTodo' are left from 0 on"):
        await record(str(TODO), ["AddTodo"], output, wanted=1, seeds=range(1), debugging_port=9199)
