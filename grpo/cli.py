"""The `grpo` command: one subcommand per job.

Options are the fields of `grpo.config.Config`. What a subcommand needs is imported when it runs,
so that `grpo --help` is quick.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.arguments import Parser, read_config, read_inspection
from grpo.errors import ConfigError
from grpo.exits import exit_code as exit_code
from grpo.option_values import check_text, require_text, short
from grpo.safe_output import one_line, printable
from grpo.threads import bind_threads

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from envs.base import Env, Task
    from envs.browser.pool import BrowserPool
    from grpo.config import Config
    from grpo.deploy.act_options import ActOptions
    from grpo.rollouts.agents import Agent

TRAIN = """Train a policy on browser tasks and evaluate it before and after on held-out seeds.

Writes to the run's folder: the weights, curves.png, media/index.html with episodes to step
through, metrics.jsonl, TensorBoard events, checkpoints and summary.json."""

EVAL = """Evaluate a policy on held-out seeds, beside a random agent and a blind one.

--adapter may name a run's folder: its options are then the defaults. Prints the success of each
task with its 95 % interval, and writes evaluation.json and media/index.html to the run's folder."""

SERVE_VLLM = """Serve the policy's model with vLLM, for grpo train --backend vllm-server.

Give it the options of the run: model, dtype, device, lora_r, vllm_memory, seed, and the first
address of vllm_url are used. Whoever reaches the port controls the server: keep it on 127.0.0.1."""

INSPECT = """Show tasks as a policy meets them.

Prints the goal, the page as the model reads it and its tokens, what a random agent and the task's
own demonstration score, and saves a screenshot with the elements' ids."""

NEW = "Write a site with a task file: a page, a task on it, and its options. It runs as it is."

PUSH = "Upload a finished run to the Hugging Face Hub, with a model card."


Commands = dict[str, tuple[Callable[[Sequence[str]], int], str]]
"""What runs, and a few words about it, by the name of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `grpo` command; return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    commands: Commands = {
        "train": (train, "train a policy and evaluate it before and after"),
        "eval": (evaluate, "evaluate a model or an adapter on held-out seeds"),
        "act": (act, "let a trained agent act on a page, also of your own browser"),
        "inspect": (inspect, "show a task as a model reads it, and what a random agent scores"),
        "demos": (demos, "collect or import demonstrations, or check which still succeed"),
        "record": (record, "show tasks in a browser: demonstrations to train on"),
        "doctor": (doctor, "check what works on this machine, and how fast"),
        "new": (new, "write a first site with a task of your own"),
        "serve-env": (serve_env, "serve browser tasks to trainers on this or other machines"),
        "serve-vllm": (serve_vllm, "serve the policy's model with vLLM"),
        "export": (export, "write a run's policy for transformers, vLLM, llama.cpp and Ollama"),
        "push": (push, "upload a finished run to the Hugging Face Hub"),
    }
    description = "GRPO for browser agents: train a small language model to act."
    return _dispatch(argv, "grpo", description, commands)


def train(
    argv: Sequence[str],
    *,
    prog: str = "grpo train",
    description: str = TRAIN,
    baselines: Mapping[str, Agent] | None = None,
) -> int:
    """Train on browser tasks; return the exit code."""
    earlier: list[tuple[Config, str]] = []

    def program() -> None:
        from grpo.files import run_id

        config = read_config(argv, prog=prog, description=description, held_out_of=_held_out_of)
        pool = _browser_pool(config)
        earlier.append((config, run_id(config.folder)))

        bind_threads(config.device)
        from grpo.run import train

        train(config, pool, baselines=baselines)

    def hint() -> str:
        from grpo.training.saver import can_resume

        return "; add --resume to continue" if any(can_resume(*run) for run in earlier) else ""

    return exit_code(program, hint=hint)


def evaluate(
    argv: Sequence[str],
    *,
    prog: str = "grpo eval",
    description: str = EVAL,
    baselines: Mapping[str, Agent] | None = None,
) -> int:
    """Evaluate a policy on browser tasks; return the exit code."""

    def program() -> None:
        config = read_config(
            argv, prog=prog, description=description, of_run=True, held_out_of=_held_out_of
        )
        pool = _browser_pool(config)

        bind_threads(config.device)
        from grpo.run import evaluate

        evaluate(config, pool, baselines=baselines)

    return exit_code(program)


def act(argv: Sequence[str]) -> int:
    """Let an agent act on a page; return the exit code, which is 1 if the check does not hold."""
    codes: list[int] = []

    def program() -> None:
        from grpo.deploy.act_options import read_options

        options = read_options(argv, _held_out_of)
        env, task = _live(options)

        bind_threads(options.config.device)
        from grpo.deploy.act_program import run

        codes.append(run(options, env, task))

    return exit_code(program) or codes[0]


def inspect(argv: Sequence[str]) -> int:
    """Show tasks as a policy meets them; return the exit code."""

    def program() -> None:
        config = read_inspection(argv, description=INSPECT, held_out_of=_held_out_of)
        pool = _browser_pool(config)

        from grpo.inspect import inspect

        inspect(config, pool)

    return exit_code(program)


def record(argv: Sequence[str]) -> int:
    """Record demonstrations by a person; return the exit code."""

    def program() -> None:
        from grpo.record_options import read_options

        options = read_options(argv)

        from envs.browser.record.command import run

        try:
            run(**options._asdict(), say=lambda line: print(printable(line), flush=True))
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise ConfigError(str(error)) from error

    return exit_code(program)


def doctor(argv: Sequence[str]) -> int:
    """Check this machine; return the exit code, which is 1 if a check fails."""
    statuses: list[str] = []

    def program() -> None:
        from grpo.doctor.options import read_options

        config, as_json = read_options(argv)

        bind_threads(config.device)
        from envs.scripted import ScriptedEnv
        from grpo.doctor.run import doctor

        findings = doctor(config, ScriptedEnv, _browser_pool, as_json=as_json)
        statuses.extend(finding.status for finding in findings)

    return exit_code(program) or int("fail" in statuses)


def demos(argv: Sequence[str]) -> int:
    """Work with demonstrations; return the exit code."""
    commands: Commands = {
        "collect": (collect_demos, "let an agent play, and keep what it solves"),
        "import": (import_demos, "read AgentLab's traces, and keep what succeeds again"),
        "check": (check_demos, "play them again, and tell which still succeed"),
    }
    return _dispatch(argv, "grpo demos", "Demonstrations to train on, in a file.", commands)


def check_demos(argv: Sequence[str]) -> int:
    """Play demonstrations again; return the exit code, which is 1 if one of them fails."""
    failed: list[str] = []

    def program() -> None:
        from grpo.demos.options import read_check

        file, config = read_check(argv)

        from grpo.demos.check import check

        replays = check(file, config, _browser_pool)
        failed.extend(each.error for each in replays if not each.succeeds)

    return exit_code(program) or int(bool(failed))


def import_demos(argv: Sequence[str]) -> int:
    """Play other programs' traces again, and keep what succeeds; return the exit code."""

    def program() -> None:
        from grpo.demos.options import read_import

        options = read_import(argv)

        from envs.browser.agentlab import read_trace
        from grpo.demos.import_traces import import_traces

        import_traces(options, read_trace, _browser_pool)

    return exit_code(program)


def collect_demos(argv: Sequence[str]) -> int:
    """Let an agent play, and keep what it solves; return the exit code."""

    def program() -> None:
        from grpo.demos.options import read_collection

        options = read_collection(argv, _held_out_of)
        pool = _browser_pool(options.config)

        bind_threads(options.config.device)
        from grpo.demos.collect import collect

        collect(options, pool)

    return exit_code(program)


def new(argv: Sequence[str]) -> int:
    """Write a first site with a task; return the exit code."""

    def program() -> None:
        parser = Parser(prog="grpo new", description=NEW)
        parser.add_argument("folder", help="folder of the site, new or empty")
        given = parser.parse_args(argv).folder

        from envs.browser.new_site import next_steps, write_site

        try:
            folder = Path(require_text(check_text(given)))
            write_site(folder)
        except ValueError as error:
            raise ConfigError(f"folder {error}") from error
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(str(error)) from error
        typed = (sys.argv[0], os.path.relpath(sys.argv[0]))
        grpo = "grpo" if shutil.which("grpo") else min(typed, key=len)
        print(printable(next_steps(folder, grpo)))

    return exit_code(program)


def serve_env(argv: Sequence[str]) -> int:
    """Serve browser tasks; return the exit code."""
    from envs.browser.server.command import main

    return main(argv)


def serve_vllm(argv: Sequence[str]) -> int:
    """Become a vLLM server; return an exit code only where that fails."""

    def program() -> None:
        config = read_config(argv, prog="grpo serve-vllm", description=SERVE_VLLM)

        from grpo.generators.vllm.serve import serve

        serve(config)

    return exit_code(program)


def export(argv: Sequence[str]) -> int:
    """Write a run's policy for other programs; return the exit code."""

    def program() -> None:
        from grpo.deploy.export_options import read_options

        options = read_options(argv)
        extra = _extra_actions(options.config)

        from envs.browser.actions import POINT_ACTIONS
        from envs.browser.prompt_file import find_prompt
        from envs.browser.recorded import recorded_chats

        prompt = find_prompt(options.config.answer, options.config.prompt)
        # Any page may turn out to have a drawing.
        if not (grammars := prompt.grammars([*dict.fromkeys([*extra, *POINT_ACTIONS])])):
            print(f"no grammar: {one_line(options.config.prompt)} has none")

        bind_threads(options.config.device)
        from grpo.deploy.export import export

        export(
            options,
            grammars=grammars,
            recorded=lambda path, count: recorded_chats(path, count, extra, prompt),
        )

    return exit_code(program)


def push(argv: Sequence[str]) -> int:
    """Upload a finished run; return the exit code."""

    def program() -> None:
        parser = Parser(prog="grpo push", description=PUSH)
        parser.add_argument("folder", type=Path, help="folder of the run")
        parser.add_argument("repo_id", help="user/name of the repository")
        arguments = parser.parse_args(argv)

        from grpo.config import is_hub_id
        from grpo.reporting.hub import push_to_hub

        if not is_hub_id(arguments.repo_id):
            raise ConfigError(f"expected a hub id, user/name, got {short(arguments.repo_id)}")
        print(one_line(push_to_hub(arguments.folder, arguments.repo_id)))

    return exit_code(program)


def _dispatch(argv: Sequence[str], prog: str, description: str, commands: Commands) -> int:
    """Run the command that the first argument names; return its exit code."""
    parser = Parser(prog=prog, description=description)
    subparsers = parser.add_subparsers(metavar="command", dest="command", required=True)
    for name, (_, text) in commands.items():
        subparsers.add_parser(name, help=text, add_help=False)
    chosen: list[str] = []

    def choose() -> None:
        if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
            raise ConfigError(
                f"expected one of {', '.join(commands)} before options, got {short(argv[0])}"
            )
        chosen.append(parser.parse_args(argv[:1]).command)

    code = exit_code(choose)
    return commands[chosen[0]][0](argv[1:]) if chosen else code


def _extra_actions(config: Config) -> list[str]:
    """Return the actions that a run's tasks allow besides the usual."""
    from envs.browser.task_file import TaskFile

    if not config.task_file:
        return []
    tasks = TaskFile(config.task_file)
    every = (tasks.find(name).actions for name in config.evaluated_tasks)
    return list(dict.fromkeys(action for actions in every for action in actions))


def _held_out_of(file: str, names: Sequence[str]) -> dict[str, bool]:
    """Return which tasks of a file are held out; see `grpo.task_options.HeldOutOf`."""
    from envs.base import TaskError
    from envs.browser.task_file import TaskFile

    tasks = TaskFile(file)
    try:
        return {name: tasks.find(name).held_out for name in names or tasks.tasks}
    except TaskError as error:
        raise TaskError(f"{file}: {error}") from error


def _live(options: ActOptions) -> tuple[AbstractAsyncContextManager[Env], Task]:
    """Return what opens the browser window of `grpo act`, and the task in it.

    Raises:
        ConfigError: a package or the browser is not installed, or an option cannot be used.
        TaskError: the user's own answer format cannot be used.
    """
    from envs.base import Task
    from envs.browser.live import check_live, open_live
    from envs.browser.prompt_file import find_prompt
    from envs.browser.url_task import UrlTask

    where: dict[str, Any] = {
        "visible": options.visible,
        "connect": options.connect,
        "secrets": options.secrets,
    }
    try:
        check_live(**where)
    except (ModuleNotFoundError, FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    config = options.config
    where["prompt"] = find_prompt(config.answer, config.prompt)
    if not options.url:
        return open_live(config.task_file, **where), Task(config.evaluated_tasks[0], config.seed)
    task = UrlTask(
        options.url,
        options.goal,
        until=options.until,
        max_turns=options.max_actions + 1,  # the agent's bound comes first
        allowed_origins=options.allow,
        actions=options.actions,
    )
    return open_live(task, **where), Task(task.name, config.seed)


def _browser_pool(config: Config) -> BrowserPool:
    """Make the pool of a program's browser sessions.

    Raises:
        ConfigError: a package or Chromium is not installed, or torchrun's variables are wrong.
        TaskError: the server that is started here does not have one of the tasks, or the user's own
            answer format cannot be used.
    """
    from envs.browser.browsergym_task import is_browsergym_task
    from envs.browser.miniwob.tasks import find_task
    from envs.browser.pool import BrowserPool
    from envs.browser.server.chromium import find_chromium
    from envs.browser.server.local import CLIENT, SERVER, check_packages
    from grpo.distributed import ranks_of

    try:  # before a model is loaded
        check_packages(CLIENT if config.env_url else SERVER)
        if not config.env_url:
            find_chromium()
            for name in () if config.task_file else config.evaluated_tasks:
                if not is_browsergym_task(name):  # those are looked up by BrowserGym
                    find_task(name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error
    return BrowserPool(config, rank=ranks_of(os.environ).rank)
