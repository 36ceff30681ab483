"""The tasks of a command line: MiniWoB's by name, or those of a file, all or some of them."""

import os

import pytest

from envs.base import TaskError
from grpo import arguments
from grpo.arguments import read_config
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.task_options import split_address

FILE = {"Add": False, "Delete": False, "AddNew": True}
"""The tasks of each file of these tests, and whether they are held out."""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of a site, below the working directory."""
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "site"


@pytest.fixture
def loaded():
    """The files that were read."""
    return []


@pytest.fixture
def read(site, loaded):
    """A function that reads a command line where every file holds the tasks of FILE."""

    def held_out_of(file, names):
        loaded.append(file)
        if unknown := set(names) - FILE.keys():
            raise TaskError(f"unknown task {min(unknown)}")
        return {name: FILE[name] for name in names or FILE}

    def read(*argv, **options):
        options = {"prog": "", "description": "", "held_out_of": held_out_of} | options
        return read_config(argv, **options)

    return read


def tasks_of(config):
    return list(config.task), list(config.held_out_tasks), str(config.folder)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("site/tasks.py", ("site/tasks.py", "")),
        ("site/tasks.py:", ("site/tasks.py", "")),
        ("site/tasks.py:Add", ("site/tasks.py", "Add")),
        ("site/tasks.py:Add,Delete", ("site/tasks.py", "Add,Delete")),
        ("a:b.py:Add", ("a:b.py", "Add")),
        ("click-test", ("", "click-test")),
        ("browsergym/openended", ("", "browsergym/openended")),
    ],
)
def test_an_address_is_a_file_with_names_or_names_alone(address, parts):
    assert split_address(address) == parts


def test_a_file_alone_names_all_of_its_tasks(read, site):
    config = read("site/tasks.py")
    assert tasks_of(config) == (["Add", "Delete"], ["AddNew"], "runs/site")
    assert config.task_file == str(site / "tasks.py")


def test_a_file_of_another_name_names_the_run(read):
    assert read("site/orders.py").output == "runs/orders"


def test_tasks_of_a_file(read):
    assert tasks_of(read("site/tasks.py:Add")) == (["Add"], [], "runs/Add")
    assert tasks_of(read("site/tasks.py:Delete,Add")) == (["Delete", "Add"], [], "runs/Delete+Add")
    assert tasks_of(read("site/tasks.py:Add,AddNew")) == (["Add"], ["AddNew"], "runs/Add")


def test_the_options_say_the_same(read):
    for argv, same in {
        ("--task-file", "site/tasks.py"): ("site/tasks.py",),
        ("--task-file", "site/tasks.py", "--task", "Add"): ("site/tasks.py:Add",),
        ("site/tasks.py", "--task", "Add"): ("site/tasks.py:Add",),
        ("Add", "--task-file", "site/tasks.py"): ("site/tasks.py:Add",),
        ("--task", "click-test"): ("click-test",),
    }.items():
        assert read(*argv) == read(*same)


def test_the_tasks_stand_before_or_after_options(read):
    for argv in (
        ("site/tasks.py:Add", "--steps", "3", "--resume"),
        ("--steps", "3", "site/tasks.py:Add", "--resume"),
        ("--steps=3", "--resume", "site/tasks.py:Add"),
    ):
        config = read(*argv)
        assert (config.task, config.steps, config.resume) == (("Add",), 3, True)


def test_held_out_tasks_of_the_command_line_come_first(read):
    config = read("site/tasks.py", "--held-out-tasks", "Delete")
    assert tasks_of(config) == (["Add"], ["Delete"], "runs/site")


def test_a_task_that_is_held_out_is_evaluated_and_not_trained_on(read):
    assert tasks_of(read("site/tasks.py:AddNew", of_run=True)) == (["AddNew"], [], "runs/AddNew")
    for argv in (["site/tasks.py:AddNew"], ["site/tasks.py:AddNew", "--held-out-tasks", "Add"]):
        with pytest.raises(ConfigError, match=r"to train on, got held-out ones: \['AddNew'\]"):
            read(*argv)


def test_the_configuration_beside_the_file_is_its_own(read, site):
    (site / "config.yaml").write_text("steps: 7\n")
    assert read("site/tasks.py").steps == 7
    assert read("site/tasks.py:Add", "--steps", "8").steps == 8
    (site / "other.yaml").write_text("lora_r: 4\n")
    config = read("site/tasks.py", "--config", "site/other.yaml")
    assert config == read("site/tasks.py").replace(lora_r=4, steps=20)


def test_a_configuration_names_a_file_relative_to_itself(read, site, monkeypatch):
    (site / "config.yaml").write_text("task_file: tasks.py\ntask: Add\n")
    assert tasks_of(read("--config", "site/config.yaml")) == (["Add"], [], "runs/Add")
    monkeypatch.chdir("/")
    assert read("--config", str(site / "config.yaml")).task_file == str(site / "tasks.py")


def test_a_configuration_with_a_file_and_no_task_means_all_of_them(read, site):
    (site / "config.yaml").write_text("task_file: tasks.py\n")
    config = read("--config", "site/config.yaml")
    assert tasks_of(config) == (["Add", "Delete"], ["AddNew"], "runs/site")


def test_a_runs_configuration_reads_the_same_tasks_from_every_folder(read, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text(read("site/tasks.py:Add,AddNew").to_yaml())
    before = read("--config", "run.yaml")
    assert tasks_of(before)[:2] == (["Add"], ["AddNew"])
    monkeypatch.chdir("/")
    assert read("--config", str(tmp_path / "run.yaml")) == before


@pytest.fixture
def run(read, tmp_path):
    """The folder of a finished run of one task and a held-out one."""
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    text = read("site/tasks.py:Add,AddNew").to_yaml()
    (tmp_path / "run" / "config.yaml").write_text(text)
    return "run"


def test_an_evaluation_of_a_run_reads_its_tasks(read, run):
    config = read("--adapter", run, of_run=True)
    assert tasks_of(config) == (["Add"], ["AddNew"], "run")
    config = read("--adapter", run, "--task", "Delete", of_run=True)
    assert tasks_of(config) == (["Delete"], [], "run")
    assert read("--adapter", run, "Delete", of_run=True) == config
    config = read("--adapter", run, "site/tasks.py", of_run=True)
    assert tasks_of(config) == (["Add", "Delete"], ["AddNew"], "run")
    config = read("--adapter", run, "elsewhere/tasks.py:AddNew", of_run=True)
    assert tasks_of(config) == (["AddNew"], [], "run")
    assert os.path.relpath(config.task_file) == "elsewhere/tasks.py"


def test_on_a_server_elsewhere_named_tasks_need_no_file_here(read, loaded):
    server = ("--env-url", "http://127.0.0.1:1")
    assert tasks_of(read("site/tasks.py:Add", *server)) == (["Add"], [], "runs/Add")
    assert loaded == []
    assert read("site/tasks.py", *server).task == ("Add", "Delete")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["site/tasks.py:Add", "--task", "Add"],
            "expected 'site/tasks.py:Add' or --task, got",
        ),
        (["a.py", "--task-file", "b.py"], "expected 'a.py' or --task-file, got both"),
        (["click-test", "--task", "click-link"], "expected 'click-test' or --task, got both"),
        (["site"], "expected tasks, got the folder 'site': try site/tasks.py"),
        (["a.py", "b.py"], "unexpected argument 'b.py'"),
        (["a\0.py"], "task_file must have no spaces around it and no control characters"),
        ([""], "task and held_out_tasks must name tasks"),
        (["a.py:,"], "task and held_out_tasks must name tasks"),
    ],
    ids=str,
)
def test_contradictions(read, site, argv, message):
    (site / "tasks.py").touch()
    with pytest.raises(ConfigError) as error:
        read(*argv)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("names", ["Nope", "Add,Nope"])
def test_every_task_has_to_be_in_the_file(read, names):
    with pytest.raises(TaskError, match="unknown task Nope"):
        read(f"site/tasks.py:{names}")
    with pytest.raises(TaskError, match="unknown task Nope"):
        read("site/tasks.py", "--held-out-tasks", names)


def test_programs_without_tasks_leave_the_file_alone(read, loaded):
    config = read("--task-file", "site/tasks.py", held_out_of=None)
    assert (config.task_file, config.task, loaded) == ("site/tasks.py", Config().task, [])
    with pytest.raises(ConfigError, match="unexpected argument"):
        read("site/tasks.py", held_out_of=None)


def test_an_inspection_has_two_defaults_of_its_own(site):
    def held_out_of(file, names):
        return FILE

    def inspect(*argv):
        return arguments.read_inspection(argv, description="", held_out_of=held_out_of)

    config = inspect("site/tasks.py", "--seed", "5")
    assert tasks_of(config) == (["Add", "Delete"], ["AddNew"], "runs/inspect")
    assert (config.seed, config.eval_episodes) == (5, 20)
    config = inspect("click-test", "--episodes", "3", "--output", "here", "--max-turns", "2")
    assert (config.eval_episodes, config.output, config.max_turns) == (3, "here", 2)
