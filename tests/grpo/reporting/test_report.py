"""Whole programs on the scripted environment: an evaluation, and a run around a training."""

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from envs.base import Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.reporting.report import RECORDED, examine, pick_examples
from grpo.rollouts.evaluation import Outcome, wilson_interval
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.run import main, run
from grpo.training.warm_start import oracle_agent

ROOT = Path(__file__).resolve().parents[3]
TWO = "click-word,click-two-words"


@asynccontextmanager
async def scripted(config, rank):
    async with EnvPool(ScriptedEnv, config.env_sessions) as pool:
        yield pool


@pytest.fixture
def tiny(make_policy, monkeypatch):
    """Programs get a tiny policy whatever model they ask for."""
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: make_policy(double=False, start=True))


@pytest.fixture
def config(tmp_path):
    return Config(output=str(tmp_path), task=TWO, eval_episodes=6, max_turns=3, max_new_tokens=2,
                  steps=1, group_size=2, groups_per_step=1, env_sessions=4)  # fmt: skip


def recorded(folder):
    """What the page shows: (when, task, seed, solved) of each episode."""
    html = (folder / "media" / "index.html").read_text()
    data = html.split('type="application/json">')[1].split("</script>")[0]
    return [(e["when"], e["task"], e["seed"], e["solved"]) for e in json.loads(data)["episodes"]]


def test_failures_and_successes_are_worth_seeing():
    a, b = ([Task(name, seed) for seed in range(9)] for name in "ab")
    outcomes = [Outcome(task, task.seed > 1, 1) for task in a]  # two failures
    outcomes += [Outcome(task, False, 1) for task in b]
    assert pick_examples(outcomes, 3) == [a[0], a[2], a[1], *b[:3]]
    assert pick_examples(outcomes, 6) == [a[0], a[2], a[1], a[3], a[4], a[5], *b[:6]]
    assert pick_examples(outcomes[:1], 6) == a[:1]
    assert pick_examples([], 6) == []


async def test_an_evaluation(config, tiny, tmp_path, capsys):
    result = await examine(config, scripted, {"oracle": oracle_agent()})
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["task"], result["adapter"], result["max_turns"]) == (TWO, "", 3)
    assert list(result["per_task"]) == config.tasks
    for name, steps in (("click-word", 1.0), ("click-two-words", 2.0)):
        rates = result["per_task"][name]
        assert list(rates) == ["random", "oracle", "blind", "policy"]
        assert list(rates["policy"]) == list(rates["blind"]) == ["sampled", "greedy"]
        oracle = rates["oracle"]["sampled"]
        low, high = wilson_interval(6, 6)
        assert oracle == {"success": 1.0, "low": low, "high": high, "n": 6, "solved": 6,
                          "steps": steps}  # fmt: skip
        assert rates["blind"]["greedy"]["solved"] == 0
    assert result["oracle"]["sampled"]["n"] == 12
    assert list(result["seconds"]) == ["setup", "random", "oracle", "blind", "policy", "media"]
    shown = recorded(tmp_path)
    assert {(when, task) for when, task, _, _ in shown} == {("evaluation", t) for t in config.tasks}
    assert len(shown) == 2 * RECORDED
    assert {seed for _, _, seed, _ in shown} <= set(range(HELD_OUT, HELD_OUT + 6))
    assert {p.name for p in tmp_path.iterdir()} == {"evaluation.json", "media"}
    out = capsys.readouterr().out
    assert "oracle, sampled      success 1.00 of 12" in out
    assert "success on 6 held-out seeds a task" in out


async def test_a_run_shows_before_and_after_also_when_it_is_resumed(config, tiny, tmp_path):
    stale = tmp_path / "media" / "before" / "click-word" / "7"
    stale.mkdir(parents=True)
    (stale / "episode.json").write_text("{}")
    config = replace(config, task="click-word", eval_episodes=2)
    first = await run(config, scripted, {"oracle": oracle_agent()})
    seeds = [HELD_OUT, HELD_OUT + 1]
    both = [(when, "click-word", seed) for when in ("after", "before") for seed in seeds]
    assert [entry[:3] for entry in recorded(tmp_path)] == both
    assert {"oracle", "untrained", "trained", "blind"} <= set(first)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    again = await run(replace(config, steps=2, resume=True), scripted)
    assert again["untrained"] == first["untrained"]
    assert again["oracle"]["sampled"]["solved"] == 2
    assert again["steps"] == 2
    assert [entry[:3] for entry in recorded(tmp_path)] == both


def test_what_cannot_be_evaluated(config, tiny, capsys):
    def code(open_pool=scripted, **changes):
        return main(lambda: replace(config, **changes), open_pool, program=examine)

    assert code(eval_episodes=0) == 2
    assert "eval_episodes must be at least 1 to evaluate, got 0" in capsys.readouterr().err
    assert code(task="click-nothing") == 2
    assert "error: unknown task 'click-nothing'" in capsys.readouterr().err

    @asynccontextmanager
    async def broken(config, rank):
        async with EnvPool(lambda: ScriptedEnv(fail_at=1), 2) as pool:
            yield pool

    assert code(broken) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no episode could be played")


INTERRUPTED = """
import os, signal, sys
import grpo.runtime
from tests.support.scripted import make_llama, make_tokenizer
from envs.scripted import ScriptedEnv
from grpo.reporting.report import examine
from grpo.model.lora_policy import LoRAPolicy
from grpo.run import main
from tests.grpo.reporting.test_report import Config, EnvPool, asynccontextmanager

class Env(ScriptedEnv):
    async def step(self, text):
        os.kill(os.getpid(), signal.SIGTERM)
        return await super().step(text)

    async def close(self):
        print("closed", flush=True)

@asynccontextmanager
async def pool(config, rank):
    async with EnvPool(Env, 1) as pool:
        yield pool

grpo.runtime.load_policy = lambda _: LoRAPolicy(make_llama(), make_tokenizer())
config = Config(output=sys.argv[1], task="click-word", eval_episodes=50)
sys.exit(main(lambda: config, pool, program=examine))
"""


def test_a_signal_ends_an_evaluation_in_order(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
    assert "closed" in done.stdout
