"""The command line: options over files, help by theme, errors in one line, exit codes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import grpo.run
from envs.base import EnvError, TaskError
from envs.browser.pool import BrowserPool
from grpo import cli, task_options
from grpo.algorithm.choices import Loss
from grpo.arguments import read_config
from grpo.cli import exit_code, main
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.files import begin_run
from grpo.generators.base import GeneratorError
from grpo.training.updater import TrainingError

LOSSES = ", ".join(get_args(Loss))

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A function that reads a command line; FOLDER in it is a folder with two configurations."""
    (tmp_path / "click-test.yaml").write_text("task: click-test\nsteps: 11\nseed: 12\n")
    (tmp_path / "other.yaml").write_text("steps: 21\nlora_r: 4\n")
    monkeypatch.setattr(task_options, "CONFIGS", tmp_path)

    def read(*argv, **options):
        argv = [arg.replace("FOLDER", str(tmp_path)) for arg in argv]
        return read_config(argv, prog="grpo train", description="Trains.", **options)

    return read


def test_command_line_over_file_over_the_tasks_own_file(read):
    assert read() == Config(steps=11, seed=12)
    assert read("--steps", "31") == Config(steps=31, seed=12)
    assert read("--config", "FOLDER/other.yaml") == Config(steps=21, lora_r=4)
    assert read("--config", "FOLDER/other.yaml", "--lora-r", "2") == Config(steps=21, lora_r=2)
    assert read("--task", "click-link") == Config(task="click-link")
    assert read("--task", "click-test", "--beta", "0", "--resume").resume


def test_options_of_every_type(read):
    for argv, options in {
        ("--seed", "5"): {"seed": 5},
        ("--beta", "0.1"): {"beta": 0.1},
        ("--beta", "1e-5"): {"beta": 1e-5},
        ("--loss=gspo",): {"loss": "gspo"},
        ("--model", "some/model"): {"model": "some/model"},
        ("--log-kl",): {"log_kl": True},
        ("--no-log-kl",): {"log_kl": False},
        ("--env-url", "http://one, http://two"): {"env_url": ("http://one", "http://two")},
        ("--credit", "steps", "--discount", "0.9"): {"credit": "steps", "discount": 0.9},
    }.items():
        assert read(*argv) == read().replace(**options)


@pytest.mark.parametrize("text", ["a,b", "a, b", " a ,b, "])
def test_lists_with_commas_and_spaces(read, text):
    assert read("--task", text).task == ("a", "b")


@pytest.mark.parametrize("text", ["task: [a, b]", "task: a, b", "task:\n  - a\n  - b"])
def test_lists_of_a_file_may_be_real_ones(read, tmp_path, text):
    (tmp_path / "tasks.yaml").write_text(text)
    assert read("--config", "FOLDER/tasks.yaml").task == ("a", "b")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-steps", "3"], "--max-steps is now called --max-turns"),
        (["--max-steps=3"], "--max-steps is now called --max-turns"),
        (["--road", "tree"], "--road is now called --forward"),
        (["--grup-size", "4"], "unknown option --grup-size; did you mean --group-size?"),
        (["--group_size", "4"], "unknown option --group_size; did you mean --group-size?"),
        (["--suite", "easy"], "--suite is now called --config"),
        (["--no-blid"], "unknown option --no-blid; did you mean --blind?"),
        (["--no-such-option"], "unknown option --no-such-option"),
        (["--zzz"], "unknown option --zzz"),
        (["--group", "4"], "unknown option --group; did you mean --group-size?"),
        (["click-test"], "unexpected argument 'click-test'"),
        (["-x"], "unexpected argument '-x'"),
        (["--steps"], "argument --steps: expected one argument"),
        (["--steps", "many"], "steps must be an integer, got 'many'"),
        (["--beta", "much"], "beta must be a number, got 'much'"),
        (["--loss", "ppo"], f"loss must be one of {LOSSES}, got 'ppo'"),
        (["--group-size", "1"], "group_size must be at least 2, got 1"),
        (["--beta", "nan"], "beta must be a finite number, got nan"),
        (["--config", "FOLDER/none.yaml"], "cannot read config 'FOLDER/none.yaml'"),
        (["--config", "FOLDER/old.yaml"], "FOLDER/old.yaml: 'max_steps' is now called 'max_turns'"),
        (["--config", "FOLDER/typo.yaml"],
         "FOLDER/typo.yaml: unknown option 'grup_size'; did you mean 'group_size'?"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_rejected(read, tmp_path, argv, message):
    (tmp_path / "old.yaml").write_text("max_steps: 4\n")
    (tmp_path / "typo.yaml").write_text("grup_size: 4\n")
    with pytest.raises(ConfigError) as error:
        read(*argv)
    text = str(error.value)
    assert text.replace(str(tmp_path), "FOLDER").startswith(message)
    assert "\n" not in text


def shown(read, capsys, option):
    """Return what a help option prints: the text, and the options under each theme."""
    with pytest.raises(SystemExit) as done:
        read(option)
    assert done.value.code == 0
    text = capsys.readouterr().out
    themes, theme = {}, ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"(\S.*):", line):
            theme = heading[1]
        elif option := re.match(r"  --([a-z-]+)", line):
            themes.setdefault(theme, []).append(option[1].replace("-", "_"))
    return text, themes


def test_help_shows_ten_options_by_theme(read, capsys):
    text, themes = shown(read, capsys, "--help")
    assert themes.pop("options") == ["help_all", "config"]
    assert themes == {
        "Task and model": ["task", "model", "output"],
        "Rollouts": ["group_size", "groups_per_step", "max_turns"],
        "Generator": ["backend"],
        "Algorithm": ["steps"],
        "Optimizer and adapter": ["learning_rate"],
        "Evaluation and output": ["resume"],
    }
    assert text.startswith("usage: grpo train [--config FILE] [options]\n\nTrains.\n")
    assert text.endswith("--help-all shows every option.\n")
    assert "tasks to train on, separated by commas (default:" in text


def test_help_all_shows_every_option(read, capsys):
    text, themes = shown(read, capsys, "--help-all")
    assert themes.pop("options") == ["help_all", "config"]
    assert [name for names in themes.values() for name in names] == list(Config.model_fields)
    assert list(themes) == [
        *("Task and model", "Rollouts", "Generator", "Environment", "Algorithm"),
        *("Optimizer and adapter", "Hardware", "Evaluation and output"),
    ]
    assert "shows every option." not in text
    for part in ("{mean,leave_one_out}", "--blind, --no-blind", "--lora-target-modules A,B,..."):
        assert part in text


def test_every_option_has_a_help_text_that_reads_by_itself():
    texts = [field.description for field in Config.model_fields.values()]
    assert len(set(texts)) == len(texts)
    assert all(text and "same" not in text and text[0] not in "(, " for text in texts)


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a finished run."""
    folder = tmp_path / "a run"
    (folder / "adapter").mkdir(parents=True)
    config = Config(
        task="click-link,click-tab", held_out_tasks="click-test", output=str(folder),
        steps=7, eval_episodes=5, resume=True,
    )  # fmt: skip
    (folder / "config.yaml").write_text(config.to_yaml())
    return folder


def test_a_runs_folder_as_adapter_of_an_evaluation(read, run_folder):
    """The run's options are the defaults, its folder is the output, its adapter is found."""
    run = Config.from_yaml(run_folder / "config.yaml")
    of_run = {"adapter": str(run_folder / "adapter"), "output": str(run_folder)}
    got = read("--adapter", str(run_folder), of_run=True)
    assert got == run.replace(**of_run)
    got = read("--adapter", str(run_folder), "--eval-episodes", "9", "--task", "c", of_run=True)
    assert got == run.replace(**of_run, eval_episodes=9, task="c", held_out_tasks="")
    got = read(
        "--adapter", str(run_folder), "--task", "click-test", of_run=True
    )  # held out in training
    assert got == run.replace(**of_run, task="click-test", held_out_tasks="")
    got = read("--adapter", str(run_folder), "--output", "elsewhere", of_run=True)
    assert got == run.replace(adapter=of_run["adapter"], output="elsewhere")


@pytest.mark.parametrize("task", ["click-button", "click-button,", " click-button"])
def test_a_tasks_own_configuration(task):
    config = read_config(["--task", task], prog="", description="")
    assert (config.task, config.steps, config.max_turns) == (("click-button",), 40, 1)


def test_tasks_without_a_configuration_of_their_own():
    for task in ("click-link", "click-test,click-button", "../../examples/configs/easy"):
        assert read_config(["--task", task], prog="", description="") == Config(task=task)
    many = ",".join(f"task-{n}" for n in range(100))
    assert len(read_config(["--task", many], prog="", description="").task) == 100


def test_a_moved_run_is_read_and_written_where_it_is_now(read, run_folder, tmp_path):
    moved = run_folder.rename(tmp_path / "moved")
    got = read("--adapter", str(moved), of_run=True)
    assert (got.output, got.adapter) == (str(moved), str(moved / "adapter"))


def test_a_run_that_trained_every_weight_is_the_model(read, run_folder):
    (run_folder / "adapter").rename(run_folder / "model")
    (run_folder / "config.yaml").write_text(Config(train="full").to_yaml())
    got = read("--adapter", str(run_folder), of_run=True)
    assert (got.adapter, got.model) == ("", str(run_folder / "model"))
    got = read("--adapter", str(run_folder), "--model", "other", of_run=True)  # as given
    assert (got.adapter, got.model) == ("", "other")


def test_a_run_that_has_not_finished(read, run_folder):
    (run_folder / "adapter").rmdir()
    with pytest.raises(ConfigError) as error:
        read("--adapter", str(run_folder), of_run=True)
    assert str(error.value) == (
        f"expected adapter/ or model/ in {run_folder}: has the run finished?"
    )


def test_an_adapter_that_is_not_a_run(read, run_folder):
    adapter = str(run_folder / "adapter")
    assert read("--adapter", adapter, of_run=True) == read().replace(adapter=adapter)
    assert read("--adapter", "user/name", of_run=True) == read().replace(adapter="user/name")
    assert read("--adapter", str(run_folder)).adapter == str(run_folder)  # of training: as given
    got = read("--adapter", str(run_folder), "--config", "FOLDER/other.yaml", of_run=True)
    assert got == Config(steps=21, lora_r=4, adapter=str(run_folder))


def raising(error):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("steps must be at least 0, got -1"), 2, "error: steps must be at least 0"),
        (TaskError("unknown task 'x'"), 2, "error: unknown task 'x'"),
        (EnvError("no server"), 1, "error: no server"),
        (GeneratorError("no sampler"), 1, "error: no sampler"),
        (TrainingError("not finite"), 1, "error: not finite"),
        (OSError("disk full"), 1, "error: disk full"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(capsys, error, code, printed):
    assert exit_code(raising(error)) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", bool(printed))
    assert err.startswith(printed)


def test_the_exit_code_of_success(capsys):
    assert exit_code(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ValueError("a bug"), SystemExit(3)])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_code(raising(error))


def python(program, *argv):
    return subprocess.run(
        [sys.executable, "-c", program, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


STOPPED = """
import signal, sys, threading
from grpo.cli import exit_code
from grpo.shutdown import Stopped

def program():
    threading.Thread(target=threading.Event().wait).start()  # an update that nobody awaits
    print("what it said before")
    raise Stopped(getattr(signal, sys.argv[1]))

sys.exit(exit_code(program, hint=lambda: "; and a hint"))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_exit_code_of_a_signal(name, code):
    done = python(STOPPED, name)
    assert (done.returncode, done.stdout) == (code, "what it said before\n")
    assert done.stderr == f"stopped by {name}; and a hint\n"


WITH_CHECKPOINT = """
import signal, sys
import grpo.run
from grpo.cli import main
from grpo.files import begin_run
from grpo.shutdown import Stopped

def train(config, env, **_):
    begin_run(config.folder)
    (config.folder / "checkpoints" / "step-000001").mkdir(parents=True)
    raise Stopped(signal.SIGINT)

grpo.run.train = train
main(["train", "--output", sys.argv[1]])
"""


def test_resuming_is_offered_after_a_signal(tmp_path):
    done = python(WITH_CHECKPOINT, str(tmp_path))
    assert done.stderr == "stopped by SIGINT; add --resume to continue\n"


HINT = "; add --resume to continue"


@pytest.mark.parametrize(
    ("begins", "saves", "options", "hint"),
    [
        (False, False, [], ""),
        (True, False, [], ""),
        (True, True, [], HINT),
        (False, True, [], ""),  # the checkpoint is an earlier run's
        (False, True, ["--resume"], HINT),
    ],
)
@pytest.mark.parametrize("kind", [EnvError, GeneratorError])
def test_resuming_is_offered_where_the_run_has_a_checkpoint(
    tmp_path, monkeypatch, capsys, kind, begins, saves, options, hint
):
    begin_run(tmp_path)

    def train(config, env, **_):
        if begins:
            begin_run(config.folder)
        if saves:
            (config.folder / "checkpoints" / "step-000001").mkdir(parents=True)
        raise kind("it is gone")

    monkeypatch.setattr("grpo.run.train", train)
    argv = ["train", "--env-url", "http://127.0.0.1:1", "--output", str(tmp_path), *options]
    assert main(argv) == 1
    assert capsys.readouterr().err == f"error: it is gone{hint}\n"


COMMANDS = ["train", "eval", "act", "inspect", "demos", "record", "doctor", "new", "serve-env"]
COMMANDS += ["serve-vllm", "export", "push"]


def test_help_of_the_command_lists_its_subcommands(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert re.findall(r"^    ([a-z-]+)", text, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "arguments are required: command"),
        (["tran"], "invalid choice: 'tran'"),
        (["demos"], "arguments are required: command"),
        (["demos", "chek"], "invalid choice: 'chek'"),
        (["demos", "--oracle"], "expected one of collect, import, check before options"),
    ],
)
def test_a_subcommand_that_does_not_exist(capsys, argv, message):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("command", ["train", "eval", "serve-vllm"])
def test_subcommands_reject_what_is_wrong(capsys, command):
    assert main([command, "--grup-size", "4"]) == 2
    error = "error: unknown option --grup-size; did you mean --group-size?\n"
    assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize("command", ["train", "eval"])
def test_subcommands_start_programs_on_browsers(monkeypatch, run_folder, command):
    """Options reach the configuration, baselines the evaluation, the environment is BrowserPool."""
    started = []

    def program(config, env, *, baselines=None):
        started.append((config, env, baselines))

    monkeypatch.setattr(grpo.run, {"train": "train", "eval": "evaluate"}[command], program)
    assert main([command, "--task", "click-link", "--env-sessions", "3"]) == 0
    ((config, env, baselines),) = started
    assert config == Config(task="click-link", env_sessions=3)
    assert isinstance(env, BrowserPool)
    assert (env.size, baselines) == (3, None)
    function = {"train": cli.train, "eval": cli.evaluate}[command]
    assert function(["--adapter", str(run_folder)], baselines={"oracle": None}) == 0
    config, _, baselines = started[1]
    assert list(baselines) == ["oracle"]
    adapter = run_folder / "adapter" if command == "eval" else run_folder
    assert config.adapter == str(adapter)
    assert (len(config.task) == 2) == (command == "eval")


def test_push_rejects_a_folder_or_an_id_that_is_none(capsys, tmp_path):
    for argv, message in (
        ([str(tmp_path), "clicks"], "expected a hub id, user/name, got 'clicks'"),
        ([str(tmp_path / "none"), "user/name"], f"no finished run in {tmp_path / 'none'}: "),
        ([], "the following arguments are required: folder, repo_id"),
    ):
        assert main(["push", *argv]) == 2
        out, err = capsys.readouterr()
        assert (out, err[: len(message) + 7]) == ("", f"error: {message}")
        assert len(err.splitlines()) == 1


LOADED = """
import json, runpy, sys

sys.argv = ["grpo", *sys.argv[1:]]
try:
    runpy.run_module("grpo", run_name="__main__")
except SystemExit as done:
    print(json.dumps([done.code, sorted({module.partition(".")[0] for module in sys.modules})]))
"""


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["eval", "--help-all"]])
def test_help_loads_neither_torch_nor_transformers(argv):
    done = python(LOADED, *argv)
    assert done.stdout.startswith("usage: grpo"), done.stderr
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    assert not {"torch", "transformers", "huggingface_hub", "rich", "envs"} & set(loaded)


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "grpo", "train", "--max-steps", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --max-steps is now called --max-turns\n"
