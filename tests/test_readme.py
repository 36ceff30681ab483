"""What the README says to type: its programs run, its commands and links are there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from envs.base import Task
from envs.checker import check_env
from grpo.config import Config
from grpo.run import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
TINY = {"steps": 2, "group_size": 4, "groups_per_step": 2, "eval_episodes": 2, "env_sessions": 4}


def program(word):
    """The names that the README's program with this word in it defines."""
    (text,) = [text for text in PROGRAMS if word in text]
    names = {"__name__": "readme"}
    exec(compile(text, "README.md", "exec"), names)
    return names


async def test_the_environment_of_forty_lines_keeps_the_contract():
    (text,) = [text for text in PROGRAMS if "class Shortest" in text]
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 40
    shortest = program("class Shortest")["Shortest"]
    task = Task("shortest", 3)
    words = (await shortest().reset(task)).page.splitlines()
    await check_env(shortest, task, good_actions=[min(words, key=len)])


@pytest.mark.model
async def test_it_trains(tmp_path):
    names = program("class Shortest")
    options = {"task": "shortest", "max_turns": 1, "max_new_tokens": 5, "blind": False}
    config = Config(output=str(tmp_path), **options, **TINY)
    summary = await run(config, names["pool"])
    assert (summary["steps"], summary["episodes"]) == (2, 16)
    assert summary["trained"]["sampled"]["n"] == 2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "media" / "index.html").is_file()


@pytest.mark.browser
async def test_the_reward_of_ones_own():
    from envs.browser.pool import browser_pool

    brief = program("class Brief")["Brief"]
    options = Config(env_sessions=1, env_workers=1)
    async with browser_pool(options, session=brief) as pool, pool.lease() as env:
        observation = await env.reset(Task("click-test", 0))
        assert (await env.step(observation.actions[0])).reward == pytest.approx(0.95)


def test_the_advantages():
    names = program("group_advantages")
    expected = torch.tensor([0.5, -0.5, -0.5, 0.5]) / (1 / 3**0.5 + 1e-4)
    torch.testing.assert_close(names["advantages"], expected)


def test_every_option_in_its_commands_is_one():
    seen = 0
    for command in COMMANDS:
        words = shlex.split(command.partition(" #")[0])
        if words[:2] == ["make", "click-test"]:
            given = dict(word.split("=", 1) for word in words[2:])
            options = shlex.split(given.pop("ARGS", ""))
            if given.get("CONFIG") == "my.yaml":
                continue
            for name, value in given.items():
                options += [f"--{name.lower()}", value]
        elif "examples/evaluate.py" in words:
            options = words[words.index("examples/evaluate.py") + 1 :]
            options = ["--eval-episodes" if o == "--episodes" else o for o in options]
        else:
            continue
        Config.from_command_line(options, "", ROOT / "examples" / "configs")
        seen += 1
    assert seen >= 12


def test_its_make_targets_and_files_are_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    mentioned = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert mentioned <= targets | {"them"}
    for path in re.findall(r"\b(?:examples|benchmarks|scripts|docs|grpo|envs)/[\w/.-]+\w", README):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "words",
    [
        ["examples/miniwob.py", "--suite", "easy"],
        ["examples/evaluate.py"],
        ["-m", "envs.browser.server"],
        ["-m", "grpo.reporting.hub"],
        ["benchmarks/lfm2_step.py"],
    ],
    ids=" ".join,
)
def test_its_programs_start(words):
    done = subprocess.run(
        [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert " ".join(words) in README or words[0] in README
