"""Files of tasks that cannot be used: one clear line and exit code 2, before a model is loaded."""

import shlex

import pytest

import grpo.model.loading
from grpo.cli import main

TASKS = """
from envs.browser import WebTask

class Add(WebTask):
    site = "http://127.0.0.1:1"
    async def setup(self, page, rng):
        return "Add it."
    async def evaluate(self, page):
        return True

AddNew = Add(held_out=True)
"""

FILES = {
    "tasks.py": TASKS,
    "syntax.py": "class Add(:\n",
    "missing_import.py": "\nimport no_such_module\n",
    "empty.py": "",
    "bad_task.py": TASKS.replace("http://127.0.0.1:1", "ftp://x"),
    "held_out.py": TASKS + "\nAdd.held_out = True\n",
    "no_folder.py": TASKS.replace("WebTask\n", "Folder, WebTask\n", 1).replace(
        '"http://127.0.0.1:1"', 'Folder("pages")'
    ),
    "no_upload.py": TASKS.replace(
        "    async def setup", "    files = {'a': 'a.pdf'}\n    async def setup"
    ),
    "not_async.py": TASKS.replace("async def evaluate", "def evaluate"),
    "notes.txt": TASKS,
    "config/tasks.py": TASKS,
    "config/config.yaml": "stepps: 3\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("load_policy", "load_chat"):
        monkeypatch.setattr(grpo.model.loading, name, None)  # a call would be another error
    return tmp_path


@pytest.mark.parametrize("program", ["train", "eval", "inspect"])
@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (
            "nowhere.py",
            "expected a Python file of tasks, got {folder}/nowhere.py: there is no such file",
        ),
        ("nowhere/tasks.py:Add", "expected a Python file of tasks, got {folder}/nowhere/tasks.py"),
        ("syntax.py", "cannot import {folder}/syntax.py, line 1: SyntaxError: "),
        ("missing_import.py:Add", "missing_import.py, line 2: ModuleNotFoundError: No module"),
        ("empty.py", "empty.py has no task: expected a subclass of WebTask"),
        (
            "bad_task.py",
            "bad_task.py: task 'Add': site must be an http address, a Folder or",
        ),
        (
            "no_folder.py",
            "'Add': site must be a folder beside the file, got 'pages': no such folder",
        ),
        ("no_upload.py", "'Add': files has 'a', but 'a.pdf' is not a file beside the tasks"),
        ("not_async.py", "'Add': evaluate must be a coroutine: async def evaluate(...)"),
        ("tasks.py:Ad", "{folder}/tasks.py: unknown task 'Ad'; close names: Add"),
        ("tasks.py:Add,click-test", "{folder}/tasks.py: unknown task 'click-test'; close names: "),
        ("tasks.py --task click-test", "{folder}/tasks.py: unknown task 'click-test'"),
        ("--task-file tasks.py --task click-test", "{folder}/tasks.py: unknown task 'click-test'"),
        ("--task-file tasks.py click-test", "{folder}/tasks.py: unknown task 'click-test'"),
        ("tasks.py:Add,Add --held-out-tasks Add", "must name tasks, each once"),
        ("tasks.py --held-out-tasks Nope", "{folder}/tasks.py: unknown task 'Nope'"),
        ("tasks.py:Add --task AddNew", "expected 'tasks.py:Add' or --task, got both"),
        ("notes.txt", "unknown task 'notes.txt'"),
        ("--task-file notes.txt", "expected a Python file of tasks, got {folder}/notes.txt"),
        ("--task-file .", "expected a Python file of tasks, got {folder}"),
        ("config", "expected tasks, got the folder 'config': try config/tasks.py"),
        ("config/tasks.py", "config/config.yaml: unknown option 'stepps'; did you mean 'steps'?"),
        ("'a\nb.py'", r"task_file must have no spaces around it and no control characters, got "),
        ("Add", "unknown task 'Add'"),
    ],
)
def test_it_is_one_line(folder, capsys, program, argv, part):
    assert main([program, *shlex.split(argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part.format(folder=folder) in line


@pytest.mark.parametrize("argv", ["held_out.py", "held_out.py:Add", "tasks.py:AddNew"])
def test_nothing_is_trained_on_what_is_held_out(folder, capsys, argv):
    assert main(["train", argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected tasks to train on, got held-out ones: ['Add" in line


def test_a_task_that_the_configuration_of_a_run_has_lost(folder, capsys):
    (folder / "run" / "adapter").mkdir(parents=True)
    (folder / "run" / "config.yaml").write_text(f"task: Gone\ntask_file: {folder}/tasks.py\n")
    for argv in (
        ["eval", "--adapter", "run"],
        ["inspect", "--adapter", "run"],
        ["train", "--config", "run/config.yaml", "--resume"],
    ):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{folder}/tasks.py: unknown task 'Gone'; close names: " in line
