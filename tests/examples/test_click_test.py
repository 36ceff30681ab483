"""The main job as a user starts it: what it refuses, what it leaves, and what it survives."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.runs import alive, descendants
from envs.base import Task
from envs.pool import EnvPool
from grpo.reporting.loggers import read_metrics
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.shutdown import SAME_S
from grpo.training.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--steps", "1", "--group-size", "2", "--groups-per-step", "2", "--eval-episodes", "2",
        "--env-sessions", "4", "--env-workers", "1", "--max-new-tokens", "8")  # fmt: skip


def click_test(folder, *options, program="click_test"):
    return subprocess.run(
        [sys.executable, f"examples/{program}.py", "--output", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def refused(folder, *options):
    """The one line of an error that is the user's to mend."""
    done = click_test(folder, *options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


def test_an_unknown_key(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("grup_size: 4\n")
    line = refused(tmp_path / "run", "--config", str(path))
    assert line == f"error: unknown key 'grup_size' in {path}; did you mean 'group_size'?"
    assert not (tmp_path / "run").exists()


def test_a_group_of_one(tmp_path):
    assert "group_size must be at least 2, got 1" in refused(tmp_path, "--group-size", "1")


def test_a_model_that_is_not_there(tmp_path):
    assert "no model at '/no/such/model'" in refused(tmp_path, "--model", "/no/such/model")


@pytest.mark.model
def test_an_adapter_on_nothing(tmp_path, bundled_path):
    line = refused(tmp_path, "--lora-target-modules", "nothing_like_this")
    assert "['nothing_like_this'] match no nn.Linear; there are: down_proj" in line


@pytest.mark.browser
@pytest.mark.model
def test_a_task_that_is_not_there(tmp_path, bundled_path):
    line = refused(tmp_path, "--task", "no-such-task", *TINY)
    assert "unknown task 'no-such-task'" in line


@pytest.mark.browser
@pytest.mark.model
def test_a_run_leaves_what_it_promises(tmp_path, bundled_path):
    done = click_test(tmp_path, *TINY, "--max-turns", "2")
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "curves.png"} <= files
    assert {"completions.txt", "adapter/tokenizer.json"} <= files
    assert {f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")} <= files
    assert any(name.startswith("tensorboard/events.out") for name in files)
    assert "checkpoints/step-000001/trainer.pt" in files
    for when in ("before", "after"):
        for seed in (HELD_OUT, HELD_OUT + 1):
            folder = f"media/{when}/click-test/{seed}"
            assert {f"{folder}/{name}" for name in ("0.png", "1.png", "episode.json")} <= files
            picture = (tmp_path / folder / "0.png").read_bytes()
            assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "media" / "index.html").read_text().count("data:image/png") >= 8

    (metrics,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert metrics["step"] == 1
    assert {"reward", "completion_length", "success", "env/failures"} <= set(metrics)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["task"], summary["steps"], summary["episodes"]) == ("click-test", 1, 4)
    for who in ("random", "untrained", "blind", "trained"):
        assert summary["per_task"]["click-test"][who] == summary[who]
        for how in ("sampled",) if who == "random" else ("sampled", "greedy"):
            rate = summary[who][how]
            assert rate["n"] == 2
            assert 0 <= rate["low"] <= rate["success"] <= rate["high"] <= 1
    assert set(summary["seconds"]) >= {"setup", "eval", "rollout", "generate", "env", "update"}
    assert "trained" in done.stdout


@pytest.mark.browser
@pytest.mark.model
def test_several_tasks_with_an_oracle_a_warm_start_and_one_that_is_held_out(tmp_path, bundled_path):
    tasks = ("--tasks", "click-test,enter-text", "--held-out-tasks", "click-test-2")
    options = (*TINY, "--eval-episodes", "1", "--max-turns", "2", "--warm-start-steps", "1")
    done = click_test(tmp_path, *tasks, *options, "--no-blind", program="miniwob")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    every = ["click-test", "enter-text", "click-test-2"]
    assert list(summary["per_task"]) == every
    for rates in summary["per_task"].values():
        assert list(rates) == ["random", "oracle", "untrained", "warm_started", "trained"]
        assert rates["oracle"]["sampled"]["solved"] == rates["oracle"]["sampled"]["n"] == 1
    assert summary["oracle"]["sampled"]["n"] == 2  # of the tasks that are trained
    assert "imitated 2 demonstrations" in done.stdout
    for name in every:
        assert (tmp_path / "media" / "after" / name / str(HELD_OUT) / "0.png").is_file()


@pytest.mark.browser
@pytest.mark.parametrize("victim", ["browser", "server"])
async def test_a_death_in_mid_run_costs_retries_and_not_the_run(victim, browsers):
    from envs.browser.env import BrowserEnv
    from envs.browser.server.local import LocalServer
    from grpo.rollouts.evaluation import random_agent
    from grpo.rollouts.rollout import Rollouts

    server, killed = LocalServer(workers=1, max_sessions=8), []

    async def session():
        return BrowserEnv(await server.ensure())

    async def act(observation, seed):
        if not killed:  # while a page is open and waits for this answer
            killed.extend(browsers(server) if victim == "browser" else [server.pid])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        return await random_agent(observation, seed)

    pool = EnvPool(session, size=3)
    play = Rollouts(pool, act, max_turns=1)
    try:
        tasks = [Task("click-test", seed) for seed in range(3)]
        groups = await play.collect(tasks, 3, [0])
    finally:
        await pool.close()
        server.close()
    assert killed
    assert play.counters["env_failures"] >= 1
    assert play.counters["episodes"] + play.counters["episodes_dropped"] == 9
    assert play.counters["episodes"] >= 6
    # The one button of the page is what a random action clicks: no failure became a reward.
    assert {episode.reward for group in groups for episode in group.episodes} == {1.0}
    assert server.processes() == []


def start(folder, *options):
    options = ("--eval-episodes", "0", "--steps", "1000", *options)
    return subprocess.Popen(
        [sys.executable, "examples/click_test.py", "--output", str(folder), *TINY, *options],
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
def test_ctrl_c_saves_and_a_second_one_ends_at_once_and_neither_leaves_a_process(
    tmp_path, bundled_path
):
    process = start(tmp_path)
    wait_for_steps(process, tmp_path, 1)
    family = descendants(process.pid)
    assert len(family) > 3  # the server and a Chromium's processes
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "stopped by SIGINT; ARGS=--resume goes on" in errors
    assert "Traceback" not in errors
    assert not alive(family)
    steps = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert checkpoints(tmp_path)[-1].name == f"step-{steps:06d}"

    process = start(tmp_path, "--resume")
    wait_for_steps(process, tmp_path, steps + 1)
    family = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_S * 1.1)  # the step takes longer
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert time.monotonic() - sent < 15
    assert not alive(family)


@pytest.fixture(scope="session")
def bundled_path():
    from grpo.model.bundled import bundled_model_path

    return bundled_model_path()
