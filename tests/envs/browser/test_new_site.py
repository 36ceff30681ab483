"""What `grpo new` writes: a page, a task that can be done on it, and the next commands."""

import ast
import shlex
from pathlib import Path

import pytest

from envs.base import Task
from envs.browser.env import BrowserEnv
from envs.browser.new_site import CONTENT, TEMPLATE, next_steps, write_site
from envs.browser.server.local import LocalServer
from envs.browser.task_file import TaskFile
from envs.checker import check_env
from grpo.cli import main
from grpo.config import Config


def test_it_writes_every_file_of_the_template(tmp_path):
    files = write_site(tmp_path / "deep" / "site")
    assert [str(path.relative_to(tmp_path / "deep" / "site")) for path in files] == list(CONTENT)
    every = {str(path.relative_to(TEMPLATE)) for path in TEMPLATE.rglob("*") if path.is_file()}
    assert {name for name in every if "__pycache__" not in name} == set(CONTENT)
    assert all(
        path.read_bytes() == (TEMPLATE / name).read_bytes()
        for path, name in zip(files, CONTENT, strict=True)
    )


def test_an_empty_folder_is_used_and_another_one_is_not(tmp_path):
    write_site(tmp_path)
    with pytest.raises(FileExistsError, match="expected a new or empty folder, got one with files"):
        write_site(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="expected a new or empty folder, got a file"):
        write_site(tmp_path / "file")


def test_the_task_file_is_short():
    lines = (TEMPLATE / "tasks.py").read_text().splitlines()
    code = "\n".join(line for line in lines if not line.strip().startswith("#"))
    assert len(lines) <= 35
    assert max(map(len, lines)) <= 100
    assert ast.get_docstring(ast.parse(code))


def test_one_task_is_trained_on_and_one_is_held_out(tmp_path):
    write_site(tmp_path / "site")
    tasks = TaskFile(tmp_path / "site" / "tasks.py")
    assert tasks.names(held_out=False) == ["Order"]
    assert tasks.names(held_out=True) == ["OrderNew"]
    trained, new = tasks.find("Order"), tasks.find("OrderNew")
    assert not set(trained.drinks) & set(new.drinks)
    assert Config.from_yaml(tmp_path / "site" / "config.yaml").max_turns == trained.max_turns


@pytest.mark.browser
async def test_its_tasks_keep_the_contract(tmp_path):
    write_site(tmp_path / "site")
    file = str(tmp_path / "site" / "tasks.py")
    async with LocalServer(workers=1, max_sessions=4, task_file=file) as server:
        for name in ("Order", "OrderNew"):
            env = BrowserEnv(server.url)
            observation = await env.reset(Task(name, 3))
            drink = observation.goal.removeprefix("Order: ").removesuffix(".")
            assert f"button {drink!r}" in observation.page
            action = env.demonstrate()
            others = [other for other in observation.actions if other != action]
            result = await env.step(others[-1])
            assert (result.reward, result.success, result.done) == (0.0, False, True)
            await env.close()
            make = lambda: BrowserEnv(server.url)  # noqa: E731
            await check_env(make, Task(name, 3), good_actions=[action])


def test_the_next_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my site"]) == 0
    text = capsys.readouterr().out
    assert text == next_steps(Path("my site"), text.partition(" inspect")[0].split()[-1]) + "\n"
    for name in CONTENT:
        assert f"my site/{name}" in text
    commands = [shlex.split(line) for line in text.partition("Next:\n")[2].splitlines()]
    assert [words[1] for words in commands] == ["inspect", "train", "eval"]
    assert commands[0][2] == "my site/tasks.py"
    assert commands[2][3] == "runs/my site"


def test_a_folder_in_use_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["new", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: expected a new or empty folder, got one with files in it: ")
