"""The options of answer formats, and runs with them on real pages."""

import json
import re
from pathlib import Path

import pytest

from envs.base import Task
from envs.browser.prompt_file import find_prompt
from envs.demonstrations import Demonstration, append_demonstration
from grpo.arguments import read_config
from grpo.cli import main
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.files import RUN_FILE
from grpo.rollouts.agents import oracle_agent, random_agent
from grpo.rollouts.demonstrations import replay
from grpo.rollouts.rollout import Rollouts
from grpo.run import run_training

DOCS = Path(__file__).parents[2] / "docs" / "answers.md"


@pytest.fixture
def address(tmp_path):
    """The class of the documentation, as written there."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "my_prompt.py").write_text(program)
    return f"{tmp_path}/my_prompt.py:JsonPrompt"


def read(*argv, of_run=True):
    return read_config(argv, prog="grpo", description="", of_run=of_run)


def run_of(folder, **options):
    (folder / "adapter").mkdir(parents=True)
    (folder / RUN_FILE).write_text("{}")
    (folder / "config.yaml").write_text(Config(**options).to_yaml())
    return str(folder)


def test_the_options(tmp_path, monkeypatch):
    assert Config().max_completion_tokens == 24
    assert Config(answer="think", max_thought_tokens=9).max_completion_tokens == 33
    assert not {"answer", "prompt", "max_thought_tokens"} & Config.resumable()
    path = tmp_path / "it.yaml"
    path.write_text("prompt: my_prompt.py:Mine\n")
    assert Config.from_yaml(path).prompt == f"{tmp_path}/my_prompt.py:Mine"
    monkeypatch.chdir(tmp_path)
    assert read("--prompt", "my_prompt.py:Mine").prompt == f"{tmp_path}/my_prompt.py:Mine"
    with pytest.raises(ConfigError, match="expected no answer beside it, got prompt='a"):
        Config(prompt="a.py:B", answer="think")


def test_a_run_is_asked_for_its_own_answers(tmp_path):
    run = run_of(tmp_path / "run", answer="think", max_thought_tokens=9)
    config = read("--adapter", run)
    assert (config.answer, config.max_completion_tokens) == ("think", 33)
    expected = "run was trained with the answer format 'think': expected no other, got 'action'"
    for argv in (
        ["--adapter", run, "--answer", "action"],
        ["--adapter", f"{run}/adapter"],
        ["--adapter", run, "--config", str(tmp_path / "other.yaml")],
    ):
        (tmp_path / "other.yaml").write_text("task: click-test\n")
        with pytest.raises(ConfigError, match=expected):
            read(*argv)
    assert read("--adapter", f"{run}/adapter", of_run=False).answer == "action"  # to train on


def test_the_file_of_a_runs_own_format_may_move(tmp_path):
    run = run_of(tmp_path / "run", prompt="/gone/a.py:Mine")
    assert read("--adapter", run).prompt == "/gone/a.py:Mine"
    assert read("--adapter", run, "--prompt", "/b.py:Mine").prompt == "/b.py:Mine"
    with pytest.raises(
        ConfigError, match="format 'a class Mine': expected no other, got 'a class "
    ):
        read("--adapter", run, "--prompt", "/b.py:Other")


@pytest.mark.parametrize("command", ["train", "eval", "inspect", "act", "export", "demos collect"])
def test_every_command_names_a_mistake_in_the_class(tmp_path, capsys, command):
    """Before a model is loaded."""
    (tmp_path / "mine.py").write_text("class Mine: pass\n")
    (tmp_path / "tasks.py").write_text(
        "from envs.browser import WebTask\n\nclass Go(WebTask):\n    site = 'http://127.0.0.1:9'\n"
        "    async def setup(self, page, rng): return ''\n"
        "    async def evaluate(self, page): return False\n"
    )
    tasks = f"{tmp_path}/tasks.py:Go"
    more = {"demos collect": [tasks, "--oracle"], "act": [tasks, "--model", str(tmp_path)]}
    if command == "export":
        more["export"] = [run_of(tmp_path / "run", prompt=f"{tmp_path}/mine.py:Mine"), "--to=gguf"]
    argv = [*command.split(), *more.get(command, [tasks]), "--prompt", f"{tmp_path}/mine.py:Mine"]
    assert main(argv) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert f"{tmp_path}/mine.py: expected Mine to be a subclass of envs.browser.prompts" in error


# Real pages.


def pool_of(**options):
    from envs.browser.pool import BrowserPool

    return BrowserPool(Config(env_workers=1, env_sessions=2, **options))


@pytest.mark.browser
async def test_agents_and_demonstrations_speak_the_format(tmp_path, address):
    task = Task("click-test", 3)
    for options in ({"answer": "think"}, {"prompt": address}):
        config = Config(**options)
        prompt = find_prompt(config.answer, config.prompt)
        async with pool_of(**options) as pool:
            for agent in (oracle_agent(), random_agent):
                episode = await Rollouts(pool, agent, 2).episode(task, [0], record=True)
                (turn,) = episode.turns
                assert episode.success
                assert prompt.thought(turn.text) == "Next: click button 'Click Me!'."
            async with pool.lease() as env:
                page = (await env.reset(task)).page
                bare = (await env.step("click('1')")).observation
                assert bare.error
                assert bare.error in bare.messages[-1]["content"]
                assert not (await env.step("click('1')")).valid_action
                action, thought = env.read_action(env.demonstrate())
                assert re.fullmatch(r"click\('\d+'\)", action)
            shown = Demonstration(task, "Click the button.", (action,), (page,))
            with_thought = Demonstration(task, "", (action,), thoughts=("It is the only one.",))
            for demonstration, said in ((shown, thought), (with_thought, "It is the only one.")):
                again = await replay(pool, demonstration, Task("click-test", 3, variant=1))
                assert again.succeeds
                assert prompt.thought(again.episode.turns[0].text) == said


@pytest.mark.browser
async def test_the_history_has_actions_only():
    async with pool_of(answer="think") as pool, pool.lease() as env:
        await env.reset(Task("click-test", 3))
        result = await env.step("Nothing is to be done yet.\nnoop()")
        assert result.valid_action
        assert result.observation.messages[-1]["content"].endswith("\nDone so far: noop()")


@pytest.mark.browser
def test_what_is_collected_has_thoughts(tmp_path, capsys):
    path = tmp_path / "demos.jsonl"
    options = ["--env-workers", "1", "--env-sessions", "2", "--answer", "think"]
    assert (
        main(["demos", "collect", "click-test", "--oracle", "-n1", "-o", str(path), *options]) == 0
    )
    assert '"thoughts": ["Next: click button \'Click Me!\'."]' in path.read_text()
    assert re.search(r'"actions": \["click\(\'\d+\'\)"\]', path.read_text())
    assert main(["demos", "check", str(path), *options[:4]]) == 0  # in the usual format
    assert main(["demos", "check", str(path), *options]) == 0
    append_demonstration(
        path, Demonstration(Task("click-test", 0), "", ("noop()",), thoughts=("I click('1').",))
    )
    assert main(["demos", "check", str(path), *options]) == 2
    assert "cannot say what a demonstration thinks: expected a thought" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.model
@pytest.mark.parametrize("own", [False, True], ids=["think", "own class"])
async def test_a_training_step_of_the_bundled_model(tmp_path, address, own):
    from envs.browser.pool import BrowserPool

    answer = {"prompt": address, "max_new_tokens": 48} if own else {"answer": "think"}
    config = Config(
        output=str(tmp_path / "run"),
        task="click-test",
        steps=1,
        warm_start_steps=1,
        group_size=4,
        groups_per_step=1,
        max_turns=1,
        temperature=0.5,
        eval_episodes=0 if own else 1,
        env_workers=1,
        env_sessions=4,
        blind=False,
        **answer,
    )
    result = await run_training(config, BrowserPool(config))
    (metrics,) = result.metrics
    assert 0 <= metrics["invalid_action_rate"] <= 1
    prompt = find_prompt(config.answer, config.prompt)
    said = [
        page
        for path in (tmp_path / "run" / "media").glob("*/*/*/episode.json")
        for page in json.loads(path.read_text())["pages"]
        if "completion" in page
    ]
    assert said
    for page in said:
        ids = set(re.findall(r"\[(\d+)\]", page["prompt"]))
        assert page["valid"] == (not prompt.why_invalid(page["completion"], ids))
        assert page["tokens"] <= config.max_completion_tokens
    config = Config.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.answer, config.prompt) == (
        answer.get("answer", "action"),
        answer.get("prompt", ""),
    )
    if not own:  # greedy completions of the untrained model are of the format already
        assert result.summary["untrained"]["greedy"]["success"] == 1
