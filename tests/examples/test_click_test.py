"""The training examples as a user starts them: errors, files, failures and signals."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from envs.base import Task
from envs.browser.miniwob.solvers import SOLVERS
from envs.pool import EnvPool
from grpo.config import Config
from grpo.reporting.loggers import read_metrics
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.shutdown import SAME_S
from grpo.training.checkpoint import checkpoints
from tests.support.processes import alive, descendants

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "examples/click_test.py"
TINY = ("--steps", "1", "--group-size", "2", "--groups-per-step", "2", "--eval-episodes", "2",
        "--env-sessions", "4", "--env-workers", "1", "--max-new-tokens", "8")  # fmt: skip


def click_test(folder, *options, program=PROGRAM):
    return subprocess.run(
        [sys.executable, program, "--output", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


@pytest.fixture
def error_line(capsys, monkeypatch):
    """A function that runs the program here, and returns the one line of its error."""

    def run(folder, *options):
        monkeypatch.setattr(sys, "argv", [PROGRAM, "--output", str(folder), *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / PROGRAM), run_name="__main__")
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_an_unknown_key_in_the_file(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("grup_size: 4\n")
    done = click_test(tmp_path / "run", "--config", str(path))
    expected = f"error: {path}: unknown option 'grup_size'; did you mean 'group_size'?\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert not (tmp_path / "run").exists()


def test_a_group_of_one(error_line, tmp_path):
    assert "group_size must be at least 2, got 1" in error_line(tmp_path, "--group-size", "1")


@pytest.mark.browser
def test_a_missing_model(error_line, tmp_path):
    assert "no model at '/no/such/model'" in error_line(tmp_path, "--model", "/no/such/model")


@pytest.mark.browser
@pytest.mark.model
def test_an_adapter_that_matches_no_layer(error_line, tmp_path, tiny_path):
    options = ("--model", tiny_path, "--lora-target-modules", "nothing_like_this")
    line = error_line(tmp_path, *options)
    assert "['nothing_like_this'] match no nn.Linear; there are: down_proj" in line


@pytest.mark.browser
def test_an_unknown_task(error_line, tmp_path):
    line = error_line(tmp_path, "--task", "no-such-task", *TINY)
    assert "unknown task 'no-such-task'" in line


@pytest.mark.browser
@pytest.mark.model
def test_a_run_leaves_the_promised_files(tmp_path, bundled_path):
    done = click_test(tmp_path, *TINY, "--max-turns", "2")
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "curves.png"} <= files
    assert {"completions.txt", "adapter/tokenizer.json"} <= files
    assert {f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")} <= files
    assert any(name.startswith(f"tensorboard/{tmp_path.name}/events.out") for name in files)
    assert "checkpoints/step-000001/trainer.pt" in files
    for label in ("before", "after"):
        for seed in (HELD_OUT, HELD_OUT + 1):
            folder = f"media/{label}/click-test/{seed}"
            assert {f"{folder}/{name}" for name in ("0.png", "1.png", "episode.json")} <= files
            picture = (tmp_path / folder / "0.png").read_bytes()
            assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "media" / "index.html").read_text().count("data:image/png") >= 8

    (metrics,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert metrics["step"] == 1
    assert {"reward", "completion_length", "success", "env/failures"} <= set(metrics)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["task"], summary["steps"], summary["episodes"]) == ("click-test", 1, 4)
    for agent_name in ("random", "untrained", "blind", "trained"):
        assert summary["per_task"]["click-test"][agent_name] == summary[agent_name]
        for decoding in ("sampled",) if agent_name == "random" else ("sampled", "greedy"):
            rate = summary[agent_name][decoding]
            assert rate["n"] == 2
            assert 0 <= rate["low"] <= rate["success"] <= rate["high"] <= 1
            assert 1 <= rate["turns"] <= 2
    assert set(summary["seconds"]) >= {"setup", "eval", "rollout", "generate", "env", "update"}
    assert "trained" in done.stdout


@pytest.mark.browser
@pytest.mark.model
def test_several_tasks_with_an_oracle_a_warm_start_and_a_held_out_task(tmp_path, tiny_path):
    tasks = ("--task", "click-test,enter-text", "--held-out-tasks", "click-test-2")
    options = (*TINY, "--eval-episodes", "1", "--max-turns", "2", "--warm-start-steps", "1")
    options += ("--model", tiny_path, "--no-blind")
    done = click_test(tmp_path, *tasks, *options, program="examples/miniwob.py")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    names = ["click-test", "enter-text", "click-test-2"]
    assert list(summary["per_task"]) == names
    for rates in summary["per_task"].values():
        assert list(rates) == ["random", "oracle", "untrained", "warm_started", "trained"]
        assert rates["oracle"]["sampled"]["solved"] == rates["oracle"]["sampled"]["n"] == 1
    assert summary["oracle"]["sampled"]["n"] == 2  # the trained tasks only
    assert "imitated 2 demonstrations" in done.stdout
    for name in names:
        assert (tmp_path / "media" / "after" / name / str(HELD_OUT) / "0.png").is_file()


def test_all_yaml_names_exactly_the_tasks_that_the_oracle_solves():
    config = Config.from_yaml(ROOT / "examples" / "configs" / "all.yaml")
    assert sorted(config.task) == sorted(SOLVERS)


@pytest.mark.browser
@pytest.mark.parametrize("victim", ["browser", "server"])
async def test_a_killed_process_costs_retries_but_not_the_run(victim, browsers):
    from envs.browser.env import BrowserEnv
    from envs.browser.server.local import LocalServer
    from grpo.rollouts.agents import random_agent
    from grpo.rollouts.rollout import Rollouts

    server, killed = LocalServer(workers=1, max_sessions=8), []

    async def connect():
        return BrowserEnv(await server.ensure())

    async def agent(observation, seed, env):
        if not killed:  # while a page is open and waits for this action
            killed.extend(browsers(server) if victim == "browser" else [server.pid])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return await random_agent(observation, seed, env)

    pool = EnvPool(connect, size=3)
    rollouts = Rollouts(pool, agent, max_turns=1)
    try:
        tasks = [Task("click-test", seed) for seed in range(3)]
        groups = await rollouts.collect(tasks, 3, [0])
    finally:
        await pool.close()
        server.close()
    assert killed
    assert rollouts.counters["env_failures"] >= 1
    assert rollouts.counters["episodes"] + rollouts.counters["episodes_dropped"] == 9
    assert rollouts.counters["episodes"] >= 6
    # A random action always clicks the page's only button, so no failure became a reward.
    assert {episode.reward for group in groups for episode in group.episodes} == {1.0}
    assert server.processes() == []


def start(folder, *options):
    options = ("--eval-episodes", "0", "--steps", "1000", *options)
    return subprocess.Popen(
        [sys.executable, PROGRAM, "--output", str(folder), *TINY, *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def wait_for_steps(process, folder, count):
    end = time.monotonic() + 200
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.browser
@pytest.mark.model
def test_the_first_signal_saves_the_second_ends_at_once_and_no_process_is_left(
    tmp_path, bundled_path
):
    process = start(tmp_path)
    wait_for_steps(process, tmp_path, 1)
    family = descendants(process.pid)
    assert len(family) > 3  # the server and a Chromium's processes
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "stopped by SIGINT; add --resume to continue" in errors
    assert "Traceback" not in errors
    assert not alive(family)
    steps = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert checkpoints(tmp_path)[-1].name == f"step-{steps:06d}"

    process = start(tmp_path, "--resume")
    wait_for_steps(process, tmp_path, steps + 1)
    family = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_S * 1.1)  # a step takes longer
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert time.monotonic() - sent < 15
    assert not alive(family)
