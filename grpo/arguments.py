"""The command line of a `Config`: one option per field, over a YAML file's options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from grpo.config import Config, field_extra, unknown_option
from grpo.errors import ConfigError
from grpo.files import RUN_FILE
from grpo.option_values import Names, short
from grpo.task_options import HeldOutOf, absolute, options_of_file, own_config, read_address


def read_config(
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    of_run: bool = False,
    held_out_of: HeldOutOf | None = None,
) -> Config:
    """Read a configuration: a file's options, then those of the command line.

    The file is that of --config, else the tasks' own.

    Args:
        argv: the command line.
        prog: the program's name, for the usage line.
        description: shown by --help.
        of_run: True for a program that does not train: tasks may be held out, and --adapter may
            name a run, whose options are then read.
        held_out_of: reads a file of tasks; None for a program that takes no task as its argument.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
        TaskError: the file of tasks cannot be used, or a task is not in it.
    """
    parser = config_parser(
        prog, description, show_all="--help-all" in argv, takes_tasks=held_out_of is not None
    )
    arguments, others = parser.parse_known_args(_join_negative_numbers(argv))
    for other in others:
        if not other.startswith("--"):
            raise ConfigError(f"unexpected argument {short(other)}")
        typed = other.partition("=")[0]
        raise ConfigError(unknown_option(typed[2:].replace("-", "_"), typed=typed, spell=_flag))
    given = vars(arguments)
    read_address(given)
    path = given.pop("config", None)
    asked = given.keys() & {"task", "task_file"}  # instead of all tasks of a file or a run
    run = Path(given.get("adapter", ""))
    is_run = of_run and path is None and bool(given.get("adapter"))
    if is_run := is_run and (run / "config.yaml").is_file():
        path = run / "config.yaml"
        del given["adapter"]
        given = {"output": str(run)} | run_weights(run) | given
    if path is None:
        path = own_config(given)
    base = Config() if path is None else Config.from_yaml(path)
    if given.get("prompt"):
        given["prompt"] = absolute(given["prompt"])
    told = given.keys() | base.model_fields_set
    if asked:
        told -= {"task"} - given.keys()
    if asked and is_run:
        told -= {"held_out_tasks"} - given.keys()
        given.setdefault("held_out_tasks", "")
    config = base.replace(**given)
    if of_run:
        _check_answer(config)
    if not config.task_file or held_out_of is None:
        return config
    names = config.task if "task" in told else ()
    held_out = config.held_out_tasks if "held_out_tasks" in told else None
    options = options_of_file(config, names, held_out, held_out_of, to_train=not of_run)
    return config.replace(**options)


def read_inspection(argv: Sequence[str], *, description: str, held_out_of: HeldOutOf) -> Config:
    """Read the configuration of `grpo inspect`, which has two options of its own.

    Args and errors are those of `read_config`.
    """
    parser = Parser(
        prog="grpo inspect",
        usage="grpo inspect [TASKS] [--seed N] [--episodes N] [--output FOLDER] [options]",
        description=description,
        epilog="TASKS and the other options are those of grpo train, with the same defaults: "
        "--model,\n--env-url, --config, ... --help-all shows them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--episodes", default="20", metavar="N", help="episodes of the random agent (default: 20)"
    )
    parser.add_argument(
        "--output",
        default="runs/inspect",
        metavar="FOLDER",
        help="folder of the screenshots (default: runs/inspect)",
    )
    own, others = parser.parse_known_args(_join_negative_numbers(argv))
    options = [f"--eval-episodes={own.episodes}", f"--output={own.output}"]
    return read_config(
        [*options, *others],
        prog=parser.prog,
        description=description,
        of_run=True,
        held_out_of=held_out_of,
    )


def run_weights(folder: Path) -> dict[str, str]:
    """Return the options that name a finished run's weights.

    Raises:
        ConfigError: the folder has none.
    """
    if (folder / "adapter").is_dir():
        return {"adapter": str(folder / "adapter")}
    if (folder / "model").is_dir():  # every weight was trained
        return {"adapter": "", "model": str(folder / "model")}
    raise ConfigError(f"expected adapter/ or model/ in {folder}: has the run finished?")


def _check_answer(config: Config) -> None:
    """Check that a run's policy is asked for the answers that it was trained to give.

    The file of the user's own format may have moved; its class has the same name then.
    """

    def answer(config: Config) -> str:
        return "a class " + config.prompt.rpartition(":")[2] if config.prompt else config.answer

    weights = Path(config.adapter or config.model)
    for run in (weights, weights.parent):
        is_run = (run / RUN_FILE).is_file() and (run / "config.yaml").is_file()
        trained = answer(Config.from_yaml(run / "config.yaml")) if is_run else answer(config)
        if trained != answer(config):
            raise ConfigError(
                f"{run} was trained with the answer format {short(trained)}: expected no other, "
                f"got {short(answer(config))}"
            )


def names_model(argv: Sequence[str]) -> bool:
    """Return True if a command line names a model or an adapter; a configuration may, too."""
    return any(word.partition("=")[0] in ("--adapter", "--model") for word in argv)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(message)


def config_parser(
    prog: str, description: str, *, show_all: bool, takes_tasks: bool = False
) -> Parser:
    """Make a parser with one option per field of `Config`, grouped by theme.

    Args:
        prog: the program's name.
        description: shown by --help.
        show_all: True to show every option, False for those that people change first.
        takes_tasks: True for a program whose argument may name tasks.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} {'[TASKS] ' * takes_tasks}[--config FILE] [options]",
        description=description,
        epilog="" if show_all else "--help-all shows every option.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if takes_tasks:
        parser.add_argument(
            "tasks",
            nargs="?",
            default=argparse.SUPPRESS,
            metavar="TASKS",
            help="a file of your own tasks (site/tasks.py), some of it (site/tasks.py:A,B), or "
            "names of MiniWoB's tasks",
        )
    parser.add_argument("--help-all", action="help", help="show every option, and exit")
    parser.add_argument(
        "--config",
        default=argparse.SUPPRESS,
        help="YAML file whose keys are the options below (default: config.yaml beside the file of "
        "tasks)",
    )
    groups: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        extra = field_extra(name)
        theme = extra["theme"]
        if theme not in groups:
            groups[theme] = parser.add_argument_group(theme)
        shown = show_all or extra["common"]
        default = field.default
        if not isinstance(default, str) and isinstance(default, Iterable):
            default = ",".join(default)
        suffix = "" if default is False or default == "" else f" (default: {default})"
        text = f"{field.description}{suffix}".replace("%", "%%")
        groups[theme].add_argument(
            _flag(name),
            **_value_of(field.annotation),
            default=argparse.SUPPRESS,
            help=text if shown else argparse.SUPPRESS,
        )
    return parser


def _value_of(kind: Any) -> dict[str, Any]:
    """Return argparse's description of a value of this type; `Config` checks it further."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"metavar": "{" + ",".join(get_args(kind)) + "}"}
    if kind in (int, float):
        return {"type": _read_int if kind is int else str, "metavar": "N" if kind is int else "X"}
    if get_origin(kind) is Mapping:
        return {"metavar": "JSON"}
    return {"metavar": "A,B,..." if kind == get_args(Names)[0] else "TEXT"}


def _read_int(text: str) -> int | str:
    """Read a number; leave any other text to `Config`, whose message names the option."""
    return int(text) if re.fullmatch(r"[-+]?[0-9]{1,1000}", text) else text


def _join_negative_numbers(argv: Sequence[str]) -> list[str]:
    """Write `--option -1e-3` as `--option=-1e-3`: argparse takes -1e-3 for an option."""
    joined: list[str] = []
    for argument in argv:
        after_option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if after_option and re.match(r"-(\.?[0-9]|inf|nan)", argument, re.IGNORECASE):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
