"""Whole programs as a user calls them: grpo.train and grpo.evaluate on an environment's class."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import grpo
import grpo.runtime
import grpo.training.trainer
from envs.base import EnvError, TaskError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.cli import exit_code
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.reporting.report import RECORDED
from grpo.rollouts.agents import oracle_agent
from grpo.rollouts.evaluation import wilson_interval
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.run import run_evaluation, run_training
from grpo.shutdown import SAME_S, Stopped
from grpo.training.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tiny(make_policy, monkeypatch):
    """Programs get a tiny policy whatever model they ask for."""
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: make_policy(double=False, start=True))


@pytest.fixture
def config(tmp_path):
    return Config(output=str(tmp_path / "run"), task="click-word", eval_episodes=2, max_turns=3,
                  max_new_tokens=2, steps=2, group_size=4, groups_per_step=2, env_sessions=4,
                  valid_action_bonus=0.5)  # fmt: skip


@pytest.fixture
def plain(config):
    """A configuration that trains without evaluations."""
    return config.replace(eval_episodes=0, steps=50)


def recorded(folder):
    """Return label, task, seed and outcome of the gallery's episodes before and after training."""
    html = (folder / "media" / "index.html").read_text()
    data = html.split('type="application/json">')[1].split("</script>")[0]
    episodes = [e for e in json.loads(data)["episodes"] if e["label"] != "training"]
    return [(e["label"], e["task"], e["seed"], e["solved"]) for e in episodes]


def saved(config):
    return [path.name for path in checkpoints(config.folder)]


def test_train_returns_what_a_run_leaves(config, capsys):
    result = grpo.train(config, ScriptedEnv, baselines={"oracle": oracle_agent()})
    assert isinstance(result, grpo.RunResult)
    assert result.folder == config.folder
    assert result.weights == config.folder / "adapter"
    assert (result.weights / "adapter_model.safetensors").is_file()
    assert (result.weights / "tokenizer.json").is_file()
    assert result.summary == json.loads((config.folder / "summary.json").read_text())
    assert (result.summary["steps"], result.summary["episodes"]) == (2, 16)
    assert list(result.summary["per_task"]["click-word"]) == [
        *("random", "oracle", "untrained", "blind", "trained"),
    ]
    assert result.summary["oracle"]["sampled"]["solved"] == 2
    assert [metrics["step"] for metrics in result.metrics] == [1, 2]
    assert all(metrics["seconds/update"] > 0 for metrics in result.metrics)
    saved_config = Config.from_yaml(config.folder / "config.yaml")
    assert saved_config == config.replace(dtype=saved_config.dtype)
    assert saved_config.dtype in ("bfloat16", "float32")
    assert saved(config) == ["step-000002"]
    for name in ("curves.png", "completions.txt", "media/index.html"):
        assert (config.folder / name).is_file()
    out = capsys.readouterr().out
    for part in ("loading the model", "oracle, sampled      success 1.00 of 2", "step   2  "):
        assert part in out


def test_a_run_without_matplotlib_ends_with_its_table(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = grpo.train(config.replace(steps=1), ScriptedEnv)
    assert (result.weights / "adapter_model.safetensors").is_file()
    assert not (config.folder / "curves.png").exists()
    out = capsys.readouterr().out
    assert "no curves.png: " in out
    assert "install the extra 'tensorboard'" in out
    assert "success on 2 held-out seeds per task" in out


def test_weights_of_a_run_that_trains_all_of_them(config, base_model, tokenizer, monkeypatch):
    import torch

    policy = grpo.FullPolicy(base_model(dtype=torch.float32), tokenizer)
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: policy)
    config = config.replace(train="full", eval_episodes=0, learning_rate=1e-5)
    result = grpo.train(config, ScriptedEnv)
    assert result.weights == config.folder / "model"
    assert (result.weights / "model.safetensors").is_file()


@pytest.mark.parametrize("native", [True, False])
def test_a_resumed_run_keeps_the_dtype_that_its_device_chose(config, monkeypatch, native):
    monkeypatch.setattr("grpo.model.device._cpu_has_bfloat16", lambda: native)
    config = config.replace(dtype="auto", steps=1, eval_episodes=0)
    grpo.train(config, ScriptedEnv)
    name = "bfloat16" if native else "float32"
    assert Config.from_yaml(config.folder / "config.yaml").dtype == name
    monkeypatch.setattr("grpo.model.device._cpu_has_bfloat16", lambda: not native)
    again = config.replace(steps=2, resume=True)
    grpo.train(again, ScriptedEnv)
    assert Config.from_yaml(config.folder / "config.yaml").dtype == name


def test_a_resumed_run_keeps_the_evaluation_before_it(config):
    labels = [(label, "click-word", HELD_OUT + i) for label in ("before", "after") for i in (0, 1)]
    first = grpo.train(config, ScriptedEnv, baselines={"oracle": oracle_agent()})
    assert [entry[:3] for entry in recorded(config.folder)] == labels
    again = grpo.train(config.replace(steps=3, resume=True), ScriptedEnv)
    assert again.summary["untrained"] == first.summary["untrained"]
    assert again.summary["oracle"]["sampled"]["solved"] == 2
    assert again.summary["steps"] == 3
    assert [metrics["step"] for metrics in again.metrics] == [1, 2, 3]
    assert [entry[:3] for entry in recorded(config.folder)] == labels


def test_a_warm_start_is_evaluated(config):
    config = config.replace(warm_start_steps=1, steps=1)
    summary = grpo.train(config, ScriptedEnv).summary
    assert list(summary["per_task"]["click-word"]) == [
        *("random", "untrained", "warm_started", "blind", "trained"),
    ]


def test_evaluate_returns_the_success_of_every_agent(config, capsys):
    config = config.replace(task="click-word,click-two-words", eval_episodes=6)
    result = grpo.evaluate(config, ScriptedEnv, baselines={"oracle": oracle_agent()})
    summary, folder = result.summary, result.folder
    assert (result.weights, result.metrics) == (None, [])
    assert summary == json.loads((folder / "evaluation.json").read_text())
    assert summary["task"] == "click-word,click-two-words"
    assert (summary["adapter"], summary["max_turns"]) == ("", 3)
    assert list(summary["per_task"]) == ["click-word", "click-two-words"]
    for name, turns in (("click-word", 1.0), ("click-two-words", 2.0)):
        rates = summary["per_task"][name]
        assert list(rates) == ["random", "oracle", "blind", "policy"]
        assert list(rates["policy"]) == list(rates["blind"]) == ["sampled", "greedy"]
        low, high = wilson_interval(6, 6)
        assert rates["oracle"]["sampled"] == {
            "success": 1.0, "low": low, "high": high, "n": 6, "solved": 6, "turns": turns,
        }  # fmt: skip
        assert rates["blind"]["greedy"]["solved"] == 0
    assert summary["oracle"]["sampled"]["n"] == 12
    assert list(summary["seconds"]) == ["setup", "random", "oracle", "blind", "policy", "media"]
    shown = recorded(folder)
    assert {entry[:2] for entry in shown} == {("evaluation", name) for name in config.task}
    assert len(shown) == 2 * RECORDED
    assert {seed for _, _, seed, _ in shown} <= set(range(HELD_OUT, HELD_OUT + 6))
    assert {path.name for path in folder.iterdir()} == {"evaluation.json", "media"}
    out = capsys.readouterr().out
    assert "oracle, sampled      success 1.00 of 12" in out
    assert "success on 6 held-out seeds per task" in out


@pytest.mark.parametrize("blind", [True, False])
def test_the_blind_agent_is_optional(config, blind):
    config = config.replace(blind=blind)
    names = ["random", *(["blind"] if blind else []), "policy"]
    assert list(grpo.evaluate(config, ScriptedEnv).summary["per_task"]["click-word"]) == names


class Paid(ScriptedEnv):
    """Pays for the length of what is said, but nothing where the seed is even; 1 to 3 turns."""

    async def reset(self, task, **options):
        self.pays = task.seed % 2
        return await super().reset(task, **options)

    async def step(self, text):
        result = await super().step(text)
        reward = self.pays * (len(text) % 4) / 2
        return replace(result, reward=reward, done=len(text) % 3 == 0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_turns": 1},
        {"credit": "discounted", "scale_rewards": "none", "seed": 1},
        {"credit": "steps", "scale_rewards": "batch", "seed": 1},
        {"credit": "steps", "max_resamples": 2, "seed": 1},  # which draws an even seed
    ],
    ids=str,
)
def test_completions_show_the_advantages_of_the_update(plain, monkeypatch, options):
    """The numbers in completions.txt are those that the batch was made of, turn by turn."""
    batches, make_batch = [], grpo.training.trainer.make_batch

    def noted(groups, advantages, **others):
        batches.append((groups, advantages))
        return make_batch(groups, advantages, **others)

    monkeypatch.setattr(grpo.training.trainer, "make_batch", noted)
    plain = plain.replace(steps=1, valid_action_bonus=0.0, **options)
    (metrics,) = grpo.train(plain, Paid).metrics
    ((groups, advantages),) = batches
    used, rows = set(), iter(advantages.tolist())
    for group in groups:
        for episode in group.episodes:
            numbers = [f"{a:+.2f}" for a in next(rows)[: len(episode.turns)]]
            used.add((group.task.seed, f"{episode.reward:g}", *numbers))
    shown = table((plain.folder / "completions.txt").read_text())
    replaced = [row for row in shown if row not in used]
    assert len(shown) >= 4
    assert len(shown) - len(replaced) >= 2
    for seed, _, *numbers in replaced:  # groups whose advantages are 0
        assert seed % 2 == 0
        assert set(numbers) <= {"+0.00", "-0.00"}
    assert len(replaced) == 2 * min(int(metrics["groups_replaced"]), 4)
    assert bool(replaced) == ("max_resamples" in options)
    assert any(float(number) for _, _, *numbers in shown for number in numbers)
    if "max_turns" not in options:
        assert any(len(set(numbers)) > 1 for _, _, *numbers in shown)


def table(text):
    """Return the rows of completions.txt: seed, reward, and an advantage per turn."""
    rows = []
    for line in text.splitlines():
        advantage = re.search(r"[+-]\d\.\d\d$", line.rstrip())
        if line.startswith("click-"):
            words = line.split()
            rows.append((int(words[1]), words[-2], advantage[0]))
        elif advantage:
            rows[-1] += (advantage[0],)
    return rows


class Counted(ScriptedEnv):
    """Counts the environments that are made and closed."""

    made = closed_ones = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1

    async def close(self):
        type(self).closed_ones += not self.closed
        await super().close()


def fresh():
    return type("Fresh", (Counted,), {})


async def make_later(env):
    await asyncio.sleep(0)
    return env()


@pytest.mark.parametrize("kind", ["class", "function", "coroutine function", "pool"])
def test_the_environment_may_be_a_class_a_function_or_a_pool(config, kind):
    env = fresh()
    sources = {
        "class": lambda: env,
        "function": lambda: lambda: env(),
        "coroutine function": lambda: lambda: make_later(env),
        "pool": lambda: EnvPool(env, 3),
    }
    grpo.evaluate(config.replace(eval_episodes=9), sources[kind]())
    assert env.made == env.closed_ones == (3 if kind == "pool" else config.env_sessions)


def test_an_error_closes_the_environments(config):
    env = fresh()
    with pytest.raises(TaskError, match="unknown task 'click-nothing'"):
        grpo.train(config.replace(task="click-nothing"), env)
    assert env.made == env.closed_ones > 0


def test_what_cannot_be_evaluated(config, capsys):
    def code(env=ScriptedEnv, **changes):
        return exit_code(lambda: grpo.evaluate(config.replace(**changes), env))

    assert code(eval_episodes=0) == 2
    assert "eval_episodes must be at least 1 to evaluate, got 0" in capsys.readouterr().err
    assert code(task="click-nothing") == 2
    assert "error: unknown task 'click-nothing'" in capsys.readouterr().err
    assert code(lambda: ScriptedEnv(fail_at=1)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no episode could be played")
    assert not config.folder.exists()


def test_the_hubs_access_is_checked_before_anything_is_loaded(config, monkeypatch):
    def no_access(repo_id):
        raise ConfigError(f"cannot push to {repo_id}: no token")

    monkeypatch.setattr("grpo.reporting.hub.check_access", no_access)
    monkeypatch.setattr("grpo.runtime.load_policy", None)
    with pytest.raises(ConfigError, match="cannot push to user/clicks: no token"):
        grpo.train(config.replace(push_to_hub="user/clicks"), ScriptedEnv)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "vllm"}, "vLLM is not installed: pip install"),
        ({"backend": "vllm", "train": "full", "vllm_sync": "adapter"}, "needs train=lora"),
        ({"backend": "vllm-server", "train": "full"}, "backend=vllm-server needs train=lora"),
        ({"backend": "vllm-server", "vllm_url": ""}, "at least one server per rank: expected 1"),
        ({"logger": "wandb"}, "logger=wandb needs wandb: install the extra 'wandb'"),
    ],
    ids=str,
)
def test_what_the_backend_needs_is_checked_before_anything_is_loaded(
    config, monkeypatch, tmp_path, options, message
):
    (tmp_path / "vllm").mkdir()  # not the package
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("grpo.runtime.load_policy", None)
    with pytest.raises(ConfigError, match=message):
        grpo.train(config.replace(**options), ScriptedEnv)
    assert not config.folder.exists()


def test_what_is_waited_for_is_shown(config, capsys):
    options = {"backend": "vllm-server", "vllm_url": "http://127.0.0.1:1", "vllm_deadline": 0.1}
    with pytest.raises(GeneratorError, match="has been unavailable for 0 s"):
        grpo.train(config.replace(**options), ScriptedEnv)
    line = "loading the model, connecting to vLLM at http://127.0.0.1:1\n"
    assert line in capsys.readouterr().out


async def test_programs_are_coroutines_too(config):
    result = await run_training(config.replace(steps=1), ScriptedEnv)
    assert result.summary["steps"] == 1
    result = await run_evaluation(config.replace(adapter=str(result.weights)), ScriptedEnv)
    assert result.summary["adapter"] == str(config.folder / "adapter")
    assert [metrics["step"] for metrics in result.metrics] == [1]  # of the run in this folder


async def test_training_in_a_notebook_cell(config):
    """Where an event loop runs already, and waits for the cell."""
    threads, before = set(), set(threading.enumerate())

    class Env(ScriptedEnv):
        async def step(self, text):
            threads.add(threading.current_thread())
            return await super().step(text)

    result = grpo.train(config.replace(steps=1), Env)
    assert result.summary["steps"] == 1
    assert len(result.metrics) == 1
    assert threading.main_thread() not in threads
    assert grpo.evaluate(config, ScriptedEnv).summary["policy"]["sampled"]["n"] == 2
    await asyncio.sleep(0)  # the cell's own loop is as it was
    assert set(threading.enumerate()) <= before


async def test_an_error_in_a_notebook_cell_is_raised_as_it_is(config):
    with pytest.raises(EnvError, match="no episode could be played"):
        grpo.evaluate(config, lambda: ScriptedEnv(fail_at=1))


@contextmanager
def keyboard_interrupts():
    """Within this context SIGINT raises KeyboardInterrupt, as in a notebook's kernel."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupting(times=1, at=5):
    """Return an environment's class that sends SIGINT at its `at`-th step, and its steps."""
    steps = []

    class Env(ScriptedEnv):
        async def step(self, text):
            steps.append(text)
            if len(steps) == at:
                for k in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
                    await asyncio.sleep(0.01)  # the loop sees it before the episode ends
                    if k + 1 < times:
                        await asyncio.sleep(SAME_S * 1.2)
                if times > 1:
                    await asyncio.sleep(60)
            return await super().step(text)

    return Env, steps


async def test_an_interrupt_in_a_notebook_cell_finishes_the_step(plain):
    env, _ = interrupting()
    with keyboard_interrupts(), pytest.raises(Stopped, match="stopped by SIGINT"):
        grpo.train(plain, env)
    (metrics,) = [json.loads(line) for line in (plain.folder / "metrics.jsonl").open()]
    assert metrics["step"] == 1
    assert saved(plain) == ["step-000001"]
    resumed = grpo.train(plain.replace(steps=2, resume=True), ScriptedEnv)
    assert [metrics["step"] for metrics in resumed.metrics] == [1, 2]


async def test_a_second_interrupt_in_a_notebook_cell_ends_at_once(plain):
    started, (env, _) = time.monotonic(), interrupting(times=2)
    with keyboard_interrupts(), pytest.raises(Stopped, match="stopped by SIGINT"):
        grpo.train(plain, env)
    assert time.monotonic() - started < 30
    assert saved(plain) == []


async def test_an_interrupt_while_the_model_is_loading(plain, make_policy, monkeypatch):
    def load(config):
        time.sleep(0.5)  # until the other thread waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # until it has noticed
        return make_policy(double=False, start=True)

    monkeypatch.setattr("grpo.runtime.load_policy", load)
    env = fresh()
    with keyboard_interrupts(), pytest.raises(Stopped, match="stopped by SIGINT"):
        grpo.train(plain, env)
    assert env.made == 0
    assert not plain.folder.exists()


@pytest.mark.parametrize("program", [grpo.train, grpo.evaluate])
def test_a_signal_does_not_wait_until_the_model_is_loaded(config, program, monkeypatch):
    go_on, finished = threading.Event(), []

    def load(_):
        os.kill(os.getpid(), signal.SIGTERM)
        finished.append(go_on.wait(60))

    monkeypatch.setattr("grpo.runtime.load_policy", load)
    try:
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            program(config, ScriptedEnv)
        assert finished == []
    finally:
        go_on.set()
    assert not config.folder.exists()


def test_an_interrupt_of_a_program_finishes_the_step(plain):
    """Without a running loop the signal arrives in the program's own."""
    env, steps = interrupting()
    with pytest.raises(Stopped) as stopped:
        grpo.train(plain, env)
    assert stopped.value.exit_code == 130
    assert len(steps) > 5
    assert saved(plain) == ["step-000001"]


def test_an_interrupt_of_an_evaluation_ends_it_at_once(config):
    env, _ = interrupting(at=1)
    with pytest.raises(Stopped, match="SIGINT"):
        grpo.evaluate(config, env)
    assert not config.folder.exists()


INTERRUPTED = """
import os, signal, sys
import grpo, grpo.runtime
from envs.scripted import ScriptedEnv
from grpo.cli import exit_code
from tests.support.models import make_llama, make_tokenizer

class Env(ScriptedEnv):
    async def step(self, text):
        os.kill(os.getpid(), signal.SIGTERM)
        return await super().step(text)

    async def close(self):
        print("closed", flush=True)

grpo.runtime.load_policy = lambda _: grpo.LoRAPolicy(make_llama(), make_tokenizer())
config = grpo.Config(output=sys.argv[1], task="click-word", eval_episodes=50, env_sessions=1)
sys.exit(exit_code(lambda: grpo.evaluate(config, Env)))
"""


def python(program, *argv):
    return subprocess.run(
        [sys.executable, "-c", program, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_signal_ends_an_evaluation_and_closes_its_environments(tmp_path):
    done = python(INTERRUPTED, str(tmp_path))
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM\n")
    assert "closed" in done.stdout


def test_importing_grpo_is_light():
    """Neither transformers nor a hub client: they are loaded when a model is."""
    heavy = {"transformers", "huggingface_hub", "tokenizers", "accelerate", "matplotlib"}
    program = (
        "import sys, grpo; before = sorted(sys.modules); print(grpo.train)\n"
        f"print({heavy} & set(sys.modules))\n"
        "print('torch' in before)"
    )
    done = python(program)
    assert done.returncode == 0, done.stderr
    first, loaded, had_torch = done.stdout.splitlines()
    assert first.startswith("<function train at ")
    assert (loaded, had_torch) == ("set()", "False")


def test_every_public_name_can_be_used():
    assert {"train", "evaluate", "Config", "Trainer", "Policy", "load_policy"} <= set(grpo.__all__)
    for name in grpo.__all__:
        assert getattr(grpo, name).__name__ == name
    with pytest.raises(AttributeError):
        grpo.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("config", "env", "message"),
    [
        ({"task": "a"}, ScriptedEnv, "config must be a grpo.Config, got {'task': 'a'}"),
        (Config(), ScriptedEnv(), "env must be a pool, a class or a function, got <envs.scripted"),
        (Config(), None, "env must be a pool, a class or a function, got None"),
    ],
)
def test_arguments_of_the_wrong_type(config, env, message):
    for program in (grpo.train, grpo.evaluate):
        with pytest.raises(TypeError) as error:
            program(config, env)
        assert str(error.value).startswith(message)
