"""Files of demonstrations: what is written is read, and what is not one is named."""

import json
from dataclasses import replace

import pytest

from envs.base import Task
from envs.demonstrations import Demonstration, append_demonstration, read_demonstrations

ONE = Demonstration(
    Task("AddTodo", 3), "Add \u201ctea\u201d.", ("fill('4', 'te\\na')", "click('7')")
)
GOOD = {"task": "AddTodo", "seed": 3, "actions": ["click('7')"]}


def test_what_is_written_is_read(tmp_path):
    site = tmp_path / "site" / "tasks.py"
    other = Demonstration(
        Task("click-test", 0), "Click.", ("click('1')",), ("button [1]",), "record", str(site)
    )
    path = tmp_path / "new" / "demos.jsonl"
    thought = replace(other, thoughts=("It is the only button.",))
    for each in (ONE, other, thought):
        append_demonstration(path, each)
    assert read_demonstrations(path) == [ONE, other, thought]
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[1])["task_file"] == "../site/tasks.py"
    assert "thoughts" not in json.loads(lines[1])


def test_a_file_that_moves_with_its_tasks_still_finds_them(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    task_file = str(here / "tasks.py")
    append_demonstration(
        here / "demos.jsonl", Demonstration(Task("A", 0), "", ("noop()",), task_file=task_file)
    )
    here.rename(there)
    (found,) = read_demonstrations(there / "demos.jsonl")
    assert found.task_file == str(there / "tasks.py")


def test_a_line_without_its_end_does_not_swallow_the_next_one(tmp_path):
    path = tmp_path / "demos.jsonl"
    path.write_text(json.dumps(GOOD))
    append_demonstration(path, ONE)
    assert [each.goal for each in read_demonstrations(path)] == ["", ONE.goal]


def test_other_keys_and_empty_lines_are_left_out(tmp_path):
    path = tmp_path / "demos.jsonl"
    path.write_text("\n" + json.dumps(GOOD | {"remarks": ["hm"], "reward": 1.0}) + "\n\n")
    assert read_demonstrations(path) == [Demonstration(Task("AddTodo", 3), "", ("click('7')",))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ""}, "task must be the name of a task, got ''"),
        ({"seed": "3"}, "seed must be an integer of at least 0, got '3'"),
        ({"seed": True}, "seed must be an integer of at least 0, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"actions": []}, "actions must be at least one text, got none"),
        ({"actions": "click('7')"}, 'actions must be a list of texts, got "click'),
        ({"actions": [7]}, r"actions must be a list of texts, got \[7\]"),
        ({"pages": ["a", "b"]}, "expected a page for each of 1 actions, got 2"),
        ({"thoughts": "hm"}, "thoughts must be a list of texts, got 'hm'"),
        ({"thoughts": ["a", "b"]}, "expected a thought for each of 1 actions, got 2"),
        ({"goal": None}, "goal must be a text, got None"),
    ],
)
def test_a_line_that_is_not_one_is_named(tmp_path, change, message):
    path = tmp_path / "demos.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(ValueError, match=f"demos.jsonl, line 2: {message}"):
        read_demonstrations(path)


@pytest.mark.parametrize("line", ["{", "[1]", "7", "\udcff", "[" * 100_000])
def test_a_line_that_is_not_json(tmp_path, line):
    path = tmp_path / "demos.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object"):
        read_demonstrations(path)


def test_an_empty_file(tmp_path):
    path = tmp_path / "demos.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"expected demonstrations in .*, got an empty file"):
        read_demonstrations(path)
