"""The options of `grpo act`. This file does not load torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from grpo.arguments import Parser, names_model, read_config
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.option_values import short
from grpo.task_options import HeldOutOf

ACT = """Let a trained agent act on a page: on one of your tasks, or at an address with a goal.

A task's own check decides about the result; at an address --until does. Prints each action, and
writes a screenshot per action and media/index.html to the output folder. The exit code is 0 if the
check holds; without a check, if no action was refused or failed. It is 1 if not."""

EPILOG = """TASK, and the options that name the model, are those of grpo eval: --adapter, --model,
--seed, --dtype, --backend, ...; --help-all shows them."""

EXTRA = ("goto", "go_back", "answer")

When = Literal["always", "submit", "never"]
WHEN: tuple[When, ...] = ("always", "submit", "never")


@dataclass(frozen=True)
class ActOptions:
    """What is to be done, where, and who decides.

    Attributes:
        config: names the model; for a task also the file and its name.
        names_model: True if the model was named, False for the default.
        url: address of the page; empty for a task of a file.
        goal: what to do there.
        until: text that a page shows at the end; empty for none.
        allow: origins that pages may load from, besides the page's own.
        actions: what the agent may do besides the usual.
        max_actions: number of actions at most.
        visible: True for a browser window on the screen.
        connect: address of a browser that runs already; empty to start one.
        confirm: which actions a person is asked about.
        secrets: values by their names.
        endpoint: address of a server that has the model; empty for a generator of our own.
        endpoint_model: name of the model there; empty for the only one.
        temperature: 0 for greedy completions.
        output: folder of the screenshots.
    """

    config: Config
    names_model: bool
    url: str
    goal: str
    until: str
    allow: tuple[str, ...]
    actions: tuple[str, ...]
    max_actions: int
    visible: bool
    connect: str
    confirm: When
    secrets: Mapping[str, str]
    endpoint: str
    endpoint_model: str
    temperature: float
    output: Path

    @property
    def has_check(self) -> bool:
        """True if something decides whether the goal is reached."""
        return not self.url or bool(self.until)


def read_options(argv: Sequence[str], held_out_of: HeldOutOf) -> ActOptions:
    """Read the options of `grpo act`.

    Args:
        argv: the command line.
        held_out_of: reads a file of tasks.

    Raises:
        ConfigError: an option is unknown, its value is wrong, or something is missing.
        TaskError: the file of tasks cannot be used, or the task is not in it.
    """
    own, others = _parser().parse_known_args(argv)
    config = read_config(
        others,
        prog="grpo act",
        description=ACT,
        of_run=True,
        held_out_of=None if own.url else held_out_of,
    )
    if own.url:
        _check_address(own)
    else:
        _check_task(own, config)
    if not any(other.startswith("--backend") for other in others):
        config = config.replace(backend="local")  # the run's own may be a server that has ended
    confirm: When = "submit" if own.url or own.connect else "never"
    if own.confirm:
        chosen = [when for when in WHEN if when == own.confirm]
        if not chosen:
            raise ConfigError(f"--confirm must be {', '.join(WHEN)}, got {short(own.confirm)}")
        confirm = chosen[0]
    if confirm != "never" and not sys.stdin.isatty():
        raise ConfigError(
            f"--confirm {confirm} asks on the terminal, and standard input is not one; "
            "--confirm never acts without asking"
        )
    if own.endpoint_model and not own.endpoint:
        raise ConfigError("--endpoint-model needs --endpoint")
    if own.visible and own.connect:
        raise ConfigError("expected --visible or --connect, got both")
    return ActOptions(
        config,
        names_model(others),
        own.url,
        own.goal,
        own.until,
        _split(own.allow),
        _split(own.actions),
        _positive(own.max_actions) or (10 if own.url else config.max_turns),
        own.visible,
        own.connect,
        confirm,
        _read_secrets(own.secret, os.environ),
        own.endpoint,
        own.endpoint_model,
        _temperature(own.temperature),
        Path(own.output),
    )


def _check_address(own: argparse.Namespace) -> None:
    if urlsplit(own.url).scheme not in ("http", "https") or not urlsplit(own.url).hostname:
        raise ConfigError(f"--url must be an http address, got {short(own.url)}")
    if not own.goal.strip():
        raise ConfigError("--url needs --goal: what to do there, in words")
    for action in _split(own.actions):
        if action not in EXTRA:
            raise ConfigError(f"--actions may be {', '.join(EXTRA)}, got {short(action)}")


def _check_task(own: argparse.Namespace, config: Config) -> None:
    for option in ("goal", "until", "allow", "actions"):
        if getattr(own, option):
            raise ConfigError(f"--{option} needs --url: a task of a file says that itself")
    if not config.task_file:
        raise ConfigError(
            "expected a task of a file, such as my_site/tasks.py:AddTodo, or --url and --goal"
        )
    if len(config.evaluated_tasks) != 1:
        raise ConfigError(
            f"expected one task, such as {config.task_file}:{config.evaluated_tasks[0]}, got "
            f"{len(config.evaluated_tasks)}: {short(', '.join(config.evaluated_tasks))}"
        )


def _read_secrets(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    secrets = {}
    for text in given:
        name, _, variable = text.partition("=")
        if not name or not variable:
            raise ConfigError(f"--secret must be NAME=VARIABLE, got {short(name)}")
        if not environ.get(variable):
            raise ConfigError(f"--secret {short(name)}: the environment has no {short(variable)}")
        secrets[name] = environ[variable]
    return secrets


def _positive(text: str) -> int:
    if text and not (re.fullmatch(r"[0-9]{1,4}", text) and int(text)):
        raise ConfigError(f"--max-actions must be an integer from 1 to 9999, got {short(text)}")
    return int(text or 0)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ConfigError(f"--temperature must be from 0 to 100, got {short(text)}")
    return value


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parser() -> Parser:
    parser = Parser(
        prog="grpo act",
        usage="grpo act [TASK] --adapter RUN [--url ADDRESS --goal TEXT] [options]",
        description=ACT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def add(name: str, metavar: str, text: str, default: str = "") -> None:
        parser.add_argument(name, metavar=metavar, help=text, default=default)

    add("--url", "ADDRESS", "page to act on, instead of a task of a file")
    add("--goal", "TEXT", "what to do there, in words")
    add("--until", "TEXT", "text that the page shows once the goal is reached: the check")
    add("--allow", "A,B,...", "origins that pages may load from and go to, besides the page's own")
    add("--actions", "A,B,...", "what the agent may do besides the usual: goto, go_back, answer")
    add("--max-actions", "N", "number of actions at most (default: the task's, or 10)")
    parser.add_argument("--visible", action="store_true", help="show the browser's window")
    add(
        "--connect",
        "ADDRESS",
        "act in a new tab of a browser that runs already, such as http://127.0.0.1:9222",
    )
    add(
        "--confirm",
        "WHEN",
        "ask on the terminal before actions: always, submit (before what may send something), "
        "never (default: submit with --url or --connect, else never)",
    )
    parser.add_argument(
        "--secret",
        metavar="NAME=VARIABLE",
        action="append",
        default=[],
        help="value of an environment variable that the page gets where the agent fills in <NAME>; "
        "nobody else sees it; may be repeated",
    )
    add("--endpoint", "ADDRESS", "server with OpenAI's API that has the model, such as .../v1")
    add("--endpoint-model", "NAME", "name of the model there (default: its only one)")
    add("--temperature", "X", "temperature of sampling; 0 takes the likeliest (default: 0)", "0")
    add("--output", "FOLDER", "folder of the screenshots (default: runs/act)", "runs/act")
    return parser
