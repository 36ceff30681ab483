"""Which names and classes stand for BrowserGym's tasks; a task file that holds some."""

from pathlib import Path

import pytest

from envs.base import TaskError
from envs.browser.actions import SITE_ACTIONS
from envs.browser.browsergym_task import BrowserGymTask, is_browsergym_task
from envs.browser.task_file import TaskFile

FILE = """
from abc import abstractmethod

from browsergym.core.task import AbstractBrowserTask, OpenEndedTask

from envs.browser.browsergym_task import BrowserGymTask

Open = BrowserGymTask("browsergym/openended", start_url="http://x", goal="Look.", max_turns=3)
Named = BrowserGymTask("webarena.4", name="four", held_out=True, options={"slow_mo": 0})


class Base(AbstractBrowserTask):
    @abstractmethod
    def part(self): ...

    def setup(self, page):
        return "Buy tea.", {}

    def validate(self, page, chat_messages):
        return 0, False, "", {}


class BuyTea(Base):
    max_turns = 7
    held_out = True

    def part(self): ...
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("browsergym/openended", True),
        ("openended", True),
        ("webarena.310", True),
        ("workarena.servicenow.order-developer-laptop", True),
        ("browsergym/miniwob.click-test", True),
        ("miniwob.click-test", False),
        ("click-test", False),
        ("webarena", False),
        ("AddTodo", False),
        ("my.task", False),
    ],
)
def test_which_names_are_browsergyms(name, expected):
    assert is_browsergym_task(name) is expected


def test_a_task_file_may_hold_browsergyms_tasks(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(FILE)
    tasks = TaskFile(path).tasks
    assert list(tasks) == [
        "Open",
        "four",
        "BuyTea",
    ]  # not what is imported or abstract
    opened, four, tea = tasks.values()
    assert (opened.task, opened.max_turns, opened.actions) == ("openended", 3, tuple(SITE_ACTIONS))
    assert opened.task_kwargs == {"start_url": "http://x", "goal": "Look."}
    assert (four.task, four.held_out, four.options) == ("webarena.4", True, {"slow_mo": 0})
    assert isinstance(tea, BrowserGymTask)
    assert (tea.task.__name__, tea.max_turns, tea.held_out) == ("BuyTea", 7, True)


def test_the_task_file_in_the_docs(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "browsergym.md").read_text()
    path = tmp_path / "tasks.py"
    path.write_text(text.partition("```python\n")[2].partition("```")[0])
    file = TaskFile(path)
    assert file.names(held_out=False) == ["Look", "PickFruit"]
    assert file.names(held_out=True) == ["Market"]


def test_an_attribute_that_cannot_be_used(tmp_path):
    path = tmp_path / "tasks.py"
    path.write_text(FILE.replace("max_turns = 7", "max_turns = 0"))
    with pytest.raises(TaskError, match="task 'BuyTea': max_turns must be an integer"):
        TaskFile(path)
