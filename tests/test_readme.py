"""What the README says: its programs run, its commands and links exist, its figures hold."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import grpo
from envs import Task, check_env
from envs.browser.new_site import write_site
from envs.browser.task_file import TaskFile
from grpo.arguments import read_config
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.run import RunResult, run_training

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.partition(" #")[0]
    for language, text in BLOCKS
    if language == "sh"
    for line in text.splitlines()
]
TINY = {"steps": 2, "group_size": 4, "groups_per_step": 2, "eval_episodes": 2, "env_sessions": 4}
SUBCOMMANDS = ("train", "eval", "inspect", "doctor", "new", "serve-env", "serve-vllm", "push")


def program(word, name="readme"):
    """Run the README's program that contains this word; return the names it defines."""
    (text,) = [text for text in PROGRAMS if word in text]
    names = {"__name__": name}
    exec(compile(text, "README.md", "exec"), names)
    return names


async def test_the_environment_keeps_the_contract():
    (text,) = [text for text in PROGRAMS if "class Shortest" in text]
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 36
    shortest = program("class Shortest")["Shortest"]
    task = Task("shortest", 3)
    words = (await shortest().reset(task)).page.splitlines()
    await check_env(shortest, task, good_actions=[min(words, key=len)])


@pytest.mark.model
async def test_the_environment_can_be_trained_on(tmp_path):
    shortest = program("class Shortest")["Shortest"]
    options = {"task": "shortest", "max_turns": 1, "max_new_tokens": 5, "blind": False}
    result = await run_training(Config(output=str(tmp_path), **options, **TINY), shortest)
    assert (result.summary["steps"], result.summary["episodes"]) == (2, 16)
    assert result.summary["trained"]["sampled"]["n"] == 2
    assert (result.weights / "adapter_model.safetensors").is_file()
    assert len(result.metrics) == 2
    assert (tmp_path / "media" / "index.html").is_file()


@pytest.mark.browser
async def test_the_changed_reward():
    from envs.browser.pool import BrowserPool

    brief = program("class Brief")["Brief"]
    options = Config(env_sessions=1, env_workers=1)
    async with BrowserPool(options, env=brief) as pool, pool.lease() as env:
        observation = await env.reset(Task("click-test", 0))
        assert (await env.step(observation.actions[0])).reward == pytest.approx(0.95)


@pytest.mark.parametrize("word", ["class Shortest", "class Brief"])
@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (RunResult({"trained": {}}, Path("runs/x")), 0, ""),
        (ConfigError("asked for the impossible"), 2, "error: asked for the impossible\n"),
        (OSError("disk full"), 1, "error: disk full\n"),
    ],
    ids=["done", "refused", "failed"],
)
def test_its_programs_pass_on_their_exit_code(word, outcome, code, line, monkeypatch, capsys):
    def train(config, env):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(grpo, "train", train)
    with pytest.raises(SystemExit) as ended:
        program(word, name="__main__")
    assert ended.value.code == code
    assert capsys.readouterr().err == line


def test_its_reward_example_trains_a_task_that_is_learned_from_reward(monkeypatch, capsys):
    configs = []
    monkeypatch.setattr(grpo, "train", lambda config, env: configs.append(config))
    with pytest.raises(SystemExit) as ended:
        program("class Brief", name="__main__")
    assert ended.value.code == 0
    table = README.partition("One adapter per task")[2].partition("\n\nOne adapter")[0]
    learned = re.findall(r"^\| ([a-z-]+) \|.*\*\*(?:0\.9\d|1\.00)\*\*", table, re.MULTILINE)
    (config,) = configs
    assert set(config.task) <= set(learned)
    assert config.warm_start_steps == 0


def test_its_own_site_is_the_one_that_grpo_new_writes(tmp_path):
    """The program is the template's without its comments and what is optional."""
    write_site(tmp_path)
    (text,) = [text for text in PROGRAMS if "class Order" in text]
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 15
    template = (tmp_path / "tasks.py").read_text().splitlines()
    for line in text.splitlines():
        assert line.partition("  #")[0] in template
    (tmp_path / "tasks.py").write_text(text)
    assert list(TaskFile(tmp_path / "tasks.py").tasks) == ["Order", "OrderNew"]
    assert [line.split()[1] for line in COMMANDS if "my_site" in line] == [
        *("new", "inspect", "train", "eval"),
        *("record", "train", "act", "export"),
    ]


def test_the_advantages():
    names = program("group_advantages")
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5]) / (1 / 3**0.5 + 1e-4)
    torch.testing.assert_close(names["advantages"], expected)


def test_every_option_in_its_commands_exists():
    programs = ("grpo train", "grpo eval", "python examples/miniwob.py")
    seen = 0
    for command in COMMANDS:
        words = shlex.split(command.removeprefix(".venv/bin/"))
        if words[:2] == ["make", "click-test"]:
            given = dict(word.split("=", 1) for word in words[2:])
            options = shlex.split(given.pop("ARGS", ""))
            for name, value in given.items():
                options += [f"--{name.lower()}", value]
        elif " ".join(words[:2]) in programs:
            options = words[2:]
        else:
            continue
        if "my.yaml" in options or "--help" in options:
            continue
        read_config(options, prog="", description="", held_out_of=lambda *_: {"Order": False})
        seen += 1
    assert seen >= 14


def test_its_make_targets_and_files_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    for path in re.findall(r"\b(?:examples|benchmarks|scripts|docs|grpo|envs)/[\w/.-]+\w", README):
        assert (ROOT / path).exists(), path
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "README.md"):
        for link in re.findall(r"\]\((?!http|#)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or page.name in (ROOT / "docs" / "README.md").read_text()


def test_the_path_through_the_code_is_as_long_as_it_says():
    section = README.partition("## Read the code")[2]
    (said,) = re.findall(r"algorithm, ([\d,]+) lines", section)
    files = re.findall(r"^\d\. \[`([\w/.]+)`\]", section, re.MULTILINE)
    lines = sum(len((ROOT / path).read_text().splitlines()) for path in files)
    assert len(files) == 6
    assert lines <= 1500, f"the path is {lines} lines long: shorten it, or take another file out"
    assert abs(lines - int(said.replace(",", ""))) <= 50, f"README must say about {lines} lines"


def test_every_subcommand_is_mentioned():
    text = README + (ROOT / "docs" / "vllm.md").read_text()
    assert [name for name in SUBCOMMANDS if f"grpo {name}" not in text] == []


@pytest.mark.parametrize(
    "words",
    [
        ["examples/click_test.py"],
        ["examples/miniwob.py"],
        ["examples/evaluate.py"],
        *(["-m", "grpo", name] for name in SUBCOMMANDS),
        ["-m", "envs.browser.server"],
        ["-m", "benchmarks.gpu"],
        ["-m", "benchmarks.model_step"],
        ["-m", "benchmarks.runs"],
    ],
    ids=" ".join,
)
def test_its_programs_start(words):
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
