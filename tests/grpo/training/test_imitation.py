"""A warm start as a whole: what it holds out, what it logs, and that it is resumed exactly."""

import asyncio
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import grpo
import grpo.rollouts.demonstrators
from envs.base import Task
from envs.demonstrations import Demonstration, append_demonstration
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.model.policy import Policy
from grpo.reporting.loggers import read_metrics
from grpo.rollouts.demonstrations import ENOUGH, SEVERAL, split_held_out
from grpo.rollouts.demonstrators import Scripted
from grpo.rollouts.rollout import gather
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.shutdown import Stopped
from grpo.training import held_out_loss
from grpo.training.checkpoint import checkpoints
from grpo.training.updater import Updater
from grpo.training.warm_start import WarmStart

NAME = "click-word"


async def shown(seed, name=NAME):
    env = ScriptedEnv()
    await env.reset(Task(name, seed))
    return Demonstration(Task(name, seed), "", (env.demonstrate(),))


@pytest.fixture
def twelve():
    return asyncio.run(asyncio.wait_for(gather(shown(seed) for seed in range(12)), 60))


def of(**seeds):
    return [
        Demonstration(Task(name, seed), "", ("noop()",))
        for name, number in seeds.items()
        for seed in range(number)
    ]


def counts(demonstrations):
    names = [each.task.name for each in demonstrations]
    return {name: names.count(name) for name in sorted(set(names))}


@pytest.mark.parametrize(
    ("seeds", "part", "expected"),
    [
        ({"a": ENOUGH - 1}, 0.5, {}),
        ({"a": ENOUGH}, 0.0, {}),
        ({"a": ENOUGH}, 0.01, {"a": 1}),
        ({"a": 40, "b": 10, "c": SEVERAL, "d": SEVERAL - 1}, 0.1, {"a": 4, "b": 1, "c": 1}),
        ({"a": 1, "b": 200}, 0.25, {"b": 50}),
    ],
)
def test_every_task_with_several_demonstrations_has_one_that_is_held_out(seeds, part, expected):
    every = of(**seeds)
    imitated, held_out = split_held_out(every, part)
    assert counts(held_out) == expected
    assert sorted(map(every.index, [*imitated, *held_out])) == list(range(len(every)))
    assert (imitated, held_out) == split_held_out(every, part)


def test_one_is_held_out_where_no_task_has_several():
    every = [Demonstration(Task(f"task-{i}", i), "", ("noop()",)) for i in range(ENOUGH)]
    imitated, held_out = split_held_out(every, 0.1)
    assert (len(imitated), len(held_out)) == (ENOUGH - 1, 1)
    assert held_out != split_held_out(every, 0.1, seed=3)[1]


def test_what_several_people_did_on_one_page_is_held_out_together():
    every = [*of(a=ENOUGH), *of(a=ENOUGH)]
    imitated, held_out = split_held_out(every, 0.1)
    assert len(held_out) == 2
    assert not {each.task for each in imitated} & {each.task for each in held_out}


@pytest.fixture
def start(make_policy, executor):
    """A function that makes a warm start, and keeps the tokens of each update."""

    def make(demonstrations=(), env=ScriptedEnv, policy=None, **options):
        settings = {"learning_rate": 0.003, "warmup_steps": 0, "max_turns": 2, "groups_per_step": 2}
        settings |= {"demonstrations": "demos.jsonl"} if demonstrations else {}
        config = Config(task=NAME, **(settings | options))
        policy = policy or make_policy(double=False, start=True)
        return WarmStart(config, policy, EnvPool(env, 4), executor, demonstrations=demonstrations)

    return make


@pytest.fixture
def played(monkeypatch):
    """The tasks of all episodes that are reset."""
    tasks, reset = [], ScriptedEnv.reset

    async def noted(self, task, **options):
        tasks.append(task)
        return await reset(self, task, **options)

    monkeypatch.setattr(ScriptedEnv, "reset", noted)
    return tasks


async def test_epochs_go_through_what_is_not_held_out(start, twelve, played):
    warm_start = start(twelve, imitation_epochs=3, imitation_batch=5)
    assert (warm_start.steps, warm_start.batch) == (7, 5)  # of 33
    await warm_start.run()
    assert warm_start.imitated == 35
    (held_out,) = split_held_out(twelve, 0.1)[1]
    assert played[0] == held_out.task  # measured, and played no more
    others = {each.task.seed for each in twelve} - {held_out.task.seed}
    for epoch in range(3):
        assert {task.seed for task in played[1:] if task.variant == epoch} == others
    assert [task.variant for task in played[1:]].count(1) == 11


async def test_a_solver_is_measured_on_seeds_of_evaluations(start, played):
    await start(warm_start_steps=5, imitation_batch=4).run()
    assert [task.seed for task in played[:2]] == [HELD_OUT, HELD_OUT + 1]
    assert len(played) == 22
    assert all(task.seed < HELD_OUT for task in played[2:])


@pytest.mark.parametrize("options", [{}, {"imitation_held_out": 0.0}])
async def test_what_is_held_out_is_measured_now_and_then(start, twelve, options):
    rows = []
    options = {"warm_start_steps": 25} | options
    await start(twelve, **options).run(lambda step, metrics: rows.append((step, metrics)))
    measured = [step for step, metrics in rows if "imitation/held_out_loss" in metrics]
    assert measured == ([] if len(options) > 1 else [0, 3, 6, 9, 12, 15, 18, 21, 24, 25])
    names = {"imitation/loss", "imitation/learning_rate", "imitation/grad_norm"}
    assert all(names <= set(metrics) for step, metrics in rows if step)
    assert rows[-1][1]["imitation/loss"] < rows[1][1]["imitation/loss"] / 2


async def test_the_losses_are_those_of_the_models_own_logits(
    start, twelve, make_policy, row_by_row, monkeypatch
):
    """Of held-out demonstrations and of the update's, at the temperature of sampling."""
    measured, updated = [], []
    lay_out, update = held_out_loss.rows_from_completions, Updater.update

    def noted(completions):
        measured.append(lay_out(completions))
        return measured[-1]

    def expected(batch, temperature=0.7):
        mask = batch.completion_mask
        logprobs, _ = row_by_row(policy.model, batch, temperature)
        greedy, _ = row_by_row(policy.model, batch, 1e-6)
        exact = ((greedy.exp() > 0.5) | ~mask).all(1)
        return -logprobs[mask].mean().item(), exact.float().mean().item()

    def noted_update(self, batch):
        updated.append(expected(batch)[0])
        return update(self, batch)

    monkeypatch.setattr(held_out_loss, "rows_from_completions", noted)
    monkeypatch.setattr(Updater, "update", noted_update)
    policy = make_policy(double=True, start=True)
    rows, expectations = [], []

    def on_step(step, metrics):
        rows.append(metrics)
        expectations.append(expected(measured[-1]))

    options = {"imitation_held_out": 0.4, "temperature": 0.7, "learning_rate": 0.002}
    await start(twelve, policy=policy, warm_start_steps=8, **options).run(on_step)
    assert len(measured[0]) == 5
    found = [(r["imitation/held_out_loss"], r["imitation/held_out_greedy"]) for r in rows]
    assert found == [pytest.approx(each, rel=1e-5) for each in expectations]
    assert len({greedy for _, greedy in found}) > 1
    assert [r["imitation/loss"] for r in rows[1:]] == pytest.approx(updated, rel=1e-5)


async def test_a_large_update_is_split_where_memory_runs_out(start, twelve, monkeypatch):
    """The gradient is that of the whole: the weights are equal up to rounding."""
    options = {"warm_start_steps": 2, "imitation_batch": 11}
    whole = start(twelve, **options)
    await whole.run()
    logprobs, sizes = Policy.logprobs, []

    def limited(self, batch, **others):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return logprobs(self, batch, **others)

    monkeypatch.setattr(Policy, "logprobs", limited)
    split = start(twelve, **options)
    await split.run()
    assert max(sizes) == 11
    assert split.imitated == whole.imitated == 22
    pairs = zip(split.policy.parameters(), whole.policy.parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


async def test_a_loss_that_rises_for_long_is_told_once(start, twelve, caplog):
    rows, warm_start = [], start(twelve, warm_start_steps=40, learning_rate=0.01)
    losses = iter([2.0, 1.5, 1.0, *(1.1 + i / 10 for i in range(20))])
    warm_start._held_out._sums = lambda: (next(losses), 1, 1, 1)
    await warm_start.run(lambda step, metrics: rows.append(metrics))
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(
        "the loss on held-out demonstrations was lowest after 8 updates (1.000 nats per token) "
        "and is 1.300 after 20"
    )


# Whole programs.


@pytest.fixture
def config(tmp_path, twelve, make_policy, monkeypatch):
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: make_policy(double=False, start=True))
    for each in twelve:
        append_demonstration(tmp_path / "demos.jsonl", each)
    return Config(
        task=NAME, output=str(tmp_path / "run"), demonstrations=str(tmp_path / "demos.jsonl"),
        imitation_epochs=2, imitation_batch=3, steps=1, eval_episodes=2, max_turns=2,
        max_new_tokens=2, group_size=4, groups_per_step=2, env_sessions=4, blind=False,
        valid_action_bonus=0.5, warmup_steps=2, dtype="float32",
    )  # fmt: skip


def interrupting(at, action):
    """Return an environment's class that does something as its `at`-th imitation is played."""
    plays = []

    class Env(ScriptedEnv):
        async def step(self, text):
            plays.append(text)
            if len(plays) == at:
                await action()
            return await super().step(text)

    return Env


async def send_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.01)


async def fail():
    raise RuntimeError("a fault")


def weights(config):
    return load_file(config.folder / "adapter" / "adapter_model.safetensors")


def imitation(config):
    times = {"time", "run"}
    rows = read_metrics(config.folder / "imitation.jsonl")
    return [{key: row[key] for key in row if key not in times} for row in rows]


@pytest.mark.parametrize("save_every", [0, 1])
@pytest.mark.parametrize(
    ("action", "error"), [(send_sigterm, Stopped), (fail, RuntimeError)], ids=["signal", "fault"]
)
def test_an_interrupted_warm_start_goes_on_as_if_nothing_had_been(
    config, tmp_path, action, error, save_every
):
    config = config.replace(save_every=save_every, eval_episodes=0)
    whole = config.replace(output=str(tmp_path / "whole"))
    grpo.train(whole, ScriptedEnv)
    for at in (10, 20):  # of 1 held out and 24
        with pytest.raises(error):
            grpo.train(config, interrupting(at if not config.resume else 12, action))
        (checkpoint,) = checkpoints(config.folder)
        state = torch.load(checkpoint / "trainer.pt")
        assert state["step"] == 0
        assert 0 < state["warm_start"]["step"] < 8
        config = config.replace(resume=True)
    grpo.train(config, ScriptedEnv)
    one, other = weights(whole), weights(config)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert imitation(config) == imitation(whole)
    assert [row["step"] for row in imitation(whole)] == list(range(9))
    assert (config.folder / "imitation.png").read_bytes()[:4] == b"\x89PNG"


def test_an_evaluation_after_it_that_failed_is_repeated_alone(config, capsys):
    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            file = config.folder / "imitation.jsonl"
            if task.seed >= HELD_OUT and file.exists() and len(file.read_text().split("\n")) > 9:
                raise RuntimeError("it is gone")
            return await super().reset(task, **options)

    with pytest.raises(RuntimeError, match="it is gone"):
        grpo.train(config, Env)
    before = imitation(config)
    assert len(before) == 9
    summary = json.loads((config.folder / "summary.json").read_text())
    assert "warm_started" not in summary
    capsys.readouterr()
    result = grpo.train(config.replace(resume=True), ScriptedEnv)
    assert "resuming the warm start from update 8" in capsys.readouterr().out
    assert result.summary["untrained"] == summary["untrained"]
    assert "warm_started" in result.summary
    assert imitation(config) == before


def test_other_demonstrations_are_not_resumed(config, twelve):
    with pytest.raises(RuntimeError, match="a fault"):
        grpo.train(config.replace(eval_episodes=0), interrupting(12, fail))
    append_demonstration(config.demonstrations, twelve[0])
    with pytest.raises(ConfigError, match="cannot resume the warm start: its demonstrations"):
        grpo.train(config.replace(eval_episodes=0, resume=True), ScriptedEnv)


def test_epochs_stand_in_place_of_updates(tmp_path):
    path = str(tmp_path / "demos.jsonl")
    assert Config(demonstrations=path).imitation_length == "40 updates"
    assert Config(demonstrations=path, imitation_epochs=1).imitation_length == "1 epoch"
    assert Config().imitation_length == ""
    for wrong in ({}, {"demonstrations": path, "warm_start_steps": 3}):
        with pytest.raises(ConfigError, match="imitation_epochs needs demonstrations"):
            Config(imitation_epochs=2, **wrong)


def test_tasks_with_long_demonstrations_are_drawn_less_often(make_policy):
    """By the square root of their tokens; those without a demonstration count as the median."""
    config = Config(task=["short", "long", "new", "usual"], warm_start_steps=1)
    scripted = Scripted(1, config, EnvPool(ScriptedEnv, 1), make_policy().chat)
    assert scripted._weights() == [1.0] * 4
    scripted.observe([("short", 50), ("long", 6400), ("short", 150), ("usual", 400)])
    assert scripted._weights() == [1 / 10, 1 / 80, 1 / 20, 1 / 20]
    again = Scripted(1, config, EnvPool(ScriptedEnv, 1), make_policy().chat)
    again.load_state(json.loads(json.dumps(scripted.state())))
    assert again._weights() == scripted._weights()


async def test_a_warm_start_notes_the_tokens_of_what_it_imitates(start):
    warm_start = start(warm_start_steps=1)
    batches = []

    def noted(episodes):
        batches.extend(episodes)

    warm_start._demonstrator.observe = noted
    await warm_start.run()
    assert [name for name, _ in batches] == [NAME] * 2
    assert all(tokens > 10 for _, tokens in batches)
