"""The command line of a `Config`: one option per field, over a YAML file's options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from grpo.config import Config, field_extra, unknown_option
from grpo.errors import ConfigError
from grpo.option_values import Names, short
from grpo.yaml_file import read_yaml

CONFIGS = Path(__file__).parent / "configs"
"""A task's own configuration is `<task>.yaml` in here."""


def read_config(
    argv: Sequence[str], *, prog: str, description: str, of_run: bool = False
) -> Config:
    """Read a configuration: a file's options, then those of the command line.

    The file is that of --config, else the task's own in `CONFIGS`.

    Args:
        argv: the command line.
        prog: the program's name, for the usage line.
        description: shown by --help.
        of_run: True to read the options of the run that --adapter names.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
    """
    parser = config_parser(prog, description, show_all="--help-all" in argv)
    arguments, others = parser.parse_known_args(_join_negative_numbers(argv))
    for other in others:
        if not other.startswith("--"):
            raise ConfigError(f"unexpected argument {short(other)}")
        typed = other.partition("=")[0]
        raise ConfigError(unknown_option(typed[2:].replace("-", "_"), typed=typed, spell=_flag))
    given = vars(arguments)
    path = given.pop("config", None)
    run = Path(given.get("adapter", ""))
    if path is None and of_run and given.get("adapter") and (run / "config.yaml").is_file():
        path = run / "config.yaml"
        del given["adapter"]
        given = {"output": str(run)} | run_weights(run) | given
        if "task" in given:  # instead of all tasks of the run
            given.setdefault("held_out_tasks", "")
    if path is None:
        path = own_config(Config(task=given.get("task", "click-test")).task)
    config = Config() if path is None else Config.from_mapping(read_yaml(path), str(path))
    return config.replace(**given)


def own_config(tasks: Sequence[str]) -> Path | None:
    """Return the configuration of a single task that has its own, else None."""
    own = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    return own.get(tasks[0]) if len(tasks) == 1 else None


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


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ConfigError(message)


def config_parser(prog: str, description: str, *, show_all: bool) -> Parser:
    """Make a parser with one option per field of `Config`, grouped by theme.

    Args:
        prog: the program's name.
        description: shown by --help.
        show_all: True to show every option, False for those that people change first.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} [--config FILE] [options]",
        description=description,
        epilog="" if show_all else "--help-all shows every option.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action="help", help="show every option, and exit")
    parser.add_argument(
        "--config", default=argparse.SUPPRESS, help="YAML file whose keys are the options below"
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
