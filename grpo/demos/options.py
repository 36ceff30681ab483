"""The options of `grpo demos`. This file does not load torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grpo.arguments import Parser, names_model, read_config
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.option_values import check_text, require_text, short
from grpo.task_options import HeldOutOf

CHECK = """Play the demonstrations of a file again, and tell which still succeed.

The exit code is 1 if one does not. Options are those of grpo train that concern the browsers."""

COLLECT = """Let an agent play training seeds, and keep what it solves as demonstrations.

The agent is one of: --teacher, a model behind an OpenAI-compatible address (greedy, its key in
the environment variable GRPO_API_KEY); --adapter or --model, a policy (sampled at --temperature);
--oracle, the scripted solver. Each kept episode is in the file at once, seeds that the file has are
not played again, and refused actions are left out."""


IMPORT = """Read the folders of AgentLab's experiments (exp_args.pkl, step_<n>.pkl.gz) on MiniWoB.

Each episode is played again, whatever reward its trace claims, and kept if the environment rewards
it. No code of the files is run, and traces of held-out seeds are refused."""


class Import(NamedTuple):
    """What to import.

    Attributes:
        config: how to open the environments.
        traces: folder of the experiments, at any depth.
        output: file of demonstrations, which may exist.
    """

    config: Config
    traces: str
    output: Path


class Collection(NamedTuple):
    """What to collect, and from whom.

    Attributes:
        config: tasks, environment and policy.
        number: seeds per task, from 0 on.
        output: file of demonstrations, which may exist.
        teacher: address of the server of the model that plays; empty for none.
        teacher_model: its name; empty for the server's only one.
        oracle: True to let the scripted solver play.
    """

    config: Config
    number: int
    output: Path
    teacher: str = ""
    teacher_model: str = ""
    oracle: bool = False


def read_check(argv: Sequence[str]) -> tuple[str, Config]:
    """Read the options of `grpo demos check`: the file, and how to open its environments.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
    """
    parser = _parser("check", "FILE [options]", CHECK)
    parser.add_argument("file", help="file of the demonstrations")
    given, options = parser.parse_known_args(argv)
    return given.file, read_config(options, prog=parser.prog, description=CHECK)


def read_import(argv: Sequence[str]) -> Import:
    """Read the options of `grpo demos import`: the traces, and how to open their environments.

    Raises:
        ConfigError: an option is unknown, or its value is wrong.
    """
    parser = _parser("import", "TRACES [-o FILE] [options]", IMPORT)
    parser.add_argument("traces", help="folder of the experiments, at any depth")
    _add_output(parser)
    given, options = parser.parse_known_args(argv)
    config = read_config(options, prog=parser.prog, description=IMPORT)
    try:
        return Import(
            config, check_text(given.traces), Path(require_text(check_text(given.output)))
        )
    except ValueError as error:
        raise ConfigError(f"TRACES and --output {error}") from error


def read_collection(argv: Sequence[str], held_out_of: HeldOutOf) -> Collection:
    """Read the options of `grpo demos collect`.

    Raises:
        ConfigError: an option is unknown or its value is wrong, there is not one agent, or a task
            is held out.
        TaskError: the file of tasks cannot be used, or a task is not in it.
    """
    usage = "[TASKS] --teacher URL | --adapter FOLDER | --oracle [-n N] [-o FILE] [options]"
    parser = _parser("collect", usage, COLLECT)
    add = parser.add_argument
    add("--teacher", default="", metavar="URL", help="address of a server, ending in /v1")
    add("--teacher-model", default="", metavar="NAME", help="its model, if it has several")
    add("--oracle", action="store_true", help="let the tasks' scripted solver play")
    add("-n", type=int, default=20, metavar="N", help="seeds of each task, 0 to N-1 (default: 20)")
    _add_output(parser)
    given, options = parser.parse_known_args(argv)

    from grpo.rollouts.task_sampler import HELD_OUT

    config = read_config(
        options,
        prog=parser.prog,
        description=COLLECT,
        of_run=True,  # --adapter may name one
        held_out_of=held_out_of,
    )
    # A configuration beside the tasks may name a model to train.
    if bool(given.teacher) + given.oracle + names_model(options) != 1:
        raise ConfigError("expected one of --teacher, --oracle, and --adapter or --model")
    if given.teacher_model and not given.teacher:
        raise ConfigError("--teacher-model needs --teacher")
    if not 1 <= given.n <= HELD_OUT:
        raise ConfigError(f"-n must be from 1 to {HELD_OUT}, got {given.n}")
    if config.task_file and not config.env_url:
        marks = held_out_of(config.task_file, config.task)
        if held_out := [name for name in config.task if marks[name]]:
            raise ConfigError(f"expected tasks to train on, got held-out ones: {short(held_out)}")
    try:
        output = Path(require_text(check_text(given.output)))
        model = check_text(given.teacher_model)
    except ValueError as error:
        raise ConfigError(f"--output and --teacher-model {error}") from error
    return Collection(config, given.n, output, given.teacher, model, given.oracle)


def _add_output(parser: Parser) -> None:
    parser.add_argument(
        *("-o", "--output"),
        default="demos.jsonl",
        metavar="FILE",
        help="file that demonstrations are added to (default: demos.jsonl)",
    )


def _parser(command: str, usage: str, description: str) -> Parser:
    prog = f"grpo demos {command}"
    return Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        epilog="TASKS and the other options are those of grpo train, with the same defaults: "
        "--model,\n--env-url, --max-turns, ... --help-all shows them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
