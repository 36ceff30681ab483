"""The options of `grpo record`. This file does not load torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grpo.arguments import Parser
from grpo.errors import ConfigError
from grpo.option_values import short
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.task_options import split_address

RECORD = """Show tasks in a visible browser: what you do becomes demonstrations to train on.

A window shows the goal above the page. Each action is printed as you take it, and replayed at once
in a second browser as a policy would do it. An episode is kept when the task says that it is
solved; F8 takes back the last action, F9 skips the seed. Ctrl-C or closing the window ends it, and
loses nothing that was kept."""


class RecordOptions(NamedTuple):
    """What to record.

    Attributes:
        file: the file of the tasks.
        names: tasks; none for all that are trained on.
        output: file of demonstrations.
        wanted: demonstrations of each task.
        seeds: seeds to take, all of them for training.
        debugging_port: see `envs.browser.record.command.record`.
    """

    file: str
    names: list[str]
    output: Path
    wanted: int
    seeds: range
    debugging_port: int


def read_options(argv: Sequence[str]) -> RecordOptions:
    """Read the options of `grpo record`.

    Raises:
        ConfigError: one is unknown, or its value is wrong.
    """
    parser = Parser(
        prog="grpo record",
        description=RECORD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "tasks",
        metavar="TASKS",
        help="a file of your own tasks (site/tasks.py), or some of it (site/tasks.py:A,B)",
    )
    parser.add_argument(
        "-n", type=int, default=5, metavar="N", help="demonstrations of each task (default: 5)"
    )
    parser.add_argument(
        *("-o", "--output"),
        type=Path,
        default="demos.jsonl",
        metavar="FILE",
        help="file to add them to, one JSON object per line (default: demos.jsonl)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="first seed; those that the file has of a task are left out (default: 0)",
    )
    # For tests: no window, and another client on this port acts as the person.
    parser.add_argument("--debugging-port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    file, names = split_address(given.tasks)
    if not file:
        raise ConfigError(f"expected a file of tasks such as site/tasks.py, got {short(names)}")
    if given.n < 1:
        raise ConfigError(f"-n must be at least 1, got {given.n}")
    if not 0 <= given.seed < HELD_OUT:
        raise ConfigError(
            f"--seed must be from 0 to {HELD_OUT - 1}, the seeds of training, got {given.seed}"
        )
    tasks = [name for name in map(str.strip, names.split(",")) if name]
    seeds = range(given.seed, HELD_OUT)
    return RecordOptions(file, tasks, given.output, given.n, seeds, given.debugging_port)
