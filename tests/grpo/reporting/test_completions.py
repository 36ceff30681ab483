"""The table of completions: which episodes, and the advantages of their turns."""

import io

import pytest
import torch
from rich.console import Console

from envs.base import Task
from grpo.reporting.completions import GROUPS, as_markdown, as_table, completion_rows
from grpo.safe_output import printable
from grpo.types import Completion, Episode, Group, Turn

TASK = Task("click-button", 3)


def episode(reward, *texts):
    completion = Completion((1,), (2,), (-1.0,), 0, "stop")
    turns = tuple(Turn(completion, text, text.startswith("click")) for text in texts)
    return Episode(TASK, turns, reward, reward > 0, "done", "Click it.")


def group(*episodes):
    return Group(TASK, episodes)


def test_each_turn_has_its_own_advantage():
    """Of groups with different numbers of episodes; columns past an episode's end do not count."""
    groups = [
        group(episode(0.5, "click('1')"), episode(0, "oh", "no"), episode(1, "click('2')")),
        group(episode(0, "click('3')"), episode(1, "click('4')", "click('5')", "click('6')")),
    ]
    advantages = [[0.1, 9, 9], [-1, -0.5, 9], [1, 9, 9], [-0.25, 9, 9], [0.25, 0, 2]]
    rows = completion_rows(groups, torch.tensor(advantages))
    assert [(row.completions, row.reward, row.advantages) for row in rows] == [
        ("click('2')", 1, "+1.00"),
        ("oh  (not a valid action)\nno  (not a valid action)", 0, "-1.00\n-0.50"),
        ("click('4')\nclick('5')\nclick('6')", 1, "+0.25\n+0.00\n+2.00"),
        ("click('3')", 0, "-0.25"),
    ]
    assert {(row.task, row.seed, row.goal) for row in rows} == {("click-button", 3, "Click it.")}


def test_the_first_groups_are_shown():
    groups = [group(episode(1, f"click('{n}')"), episode(0, "no")) for n in range(GROUPS + 2)]
    rows = completion_rows(groups, torch.zeros(2 * len(groups), 1))
    assert [row.completions for row in rows[::2]] == [f"click('{n}')" for n in range(GROUPS)]


def test_every_episode_needs_its_advantages():
    with pytest.raises(ValueError, match="zip"):
        completion_rows([group(episode(1, "click('1')"), episode(0, "no"))], torch.zeros(1, 1))


def test_markdown_shows_texts_as_they_are():
    groups = [group(episode(1, "a | b\n\tc <img> ![x](y)"), episode(0, "d"))]
    table = as_markdown(completion_rows(groups, torch.tensor([[1.0], [-1.0]])))
    assert table.splitlines()[2] == (
        r"| click-button | 3 | Click it. | a \| b c \<img\> \!\[x\](y)  (not a valid action) "
        "| 1 | +1.00 |"
    )


HOSTILE = "\x1b[2J\x9b31m\r\u202e \ud800 [red]x[/] :smile:"


def test_what_pages_and_completions_say_cannot_command_a_terminal():
    task = Task(f"{HOSTILE}\nstep 3", 0)
    completion = Completion((1,), (2,), (-1.0,), 0, "stop")
    evil = Episode(task, (Turn(completion, HOSTILE, False),), 1.0, True, "done", HOSTILE)
    rows = completion_rows([Group(task, (evil, evil))], torch.zeros(2, 1))
    for row in rows:
        assert "\n" not in row.task
        assert row == row._replace(**{k: printable(v) for k, v in row._asdict().items()
                                      if isinstance(v, str)})  # fmt: skip
        assert row.goal == r"\x1b[2J\x9b31m\r\u202e \ud800 [red]x[/] :smile:"
    console = Console(file=io.StringIO(), width=200)
    console.print(as_table(rows))
    text = console.file.getvalue()
    assert printable(text) == text
    assert text.count("[red]x[/] :smile:") == 6
    text = as_markdown(rows)
    assert printable(text) == text
