import math
from dataclasses import replace

import pytest
import torch

import grpo.batch
import grpo.trainer
from envs.base import EnvError, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.checkpoint import checkpoints
from grpo.losses import policy_loss
from grpo.metrics import METRICS
from grpo.trainer import HELD_OUT, Trainer

WORKS = {"steps": 3, "valid_action_bonus": 0.5}  # a signal in nearly every group


async def run(trainer):
    return [metrics async for metrics in trainer.train()]


def updates(steps):
    done = [metrics for metrics in steps if not metrics["update/skipped"]]
    assert done, "every step was skipped"
    return done


def parameters(trainer):
    return [p.detach().clone() for p in trainer.policy.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


async def success(trainer):
    """The exact probability of the right answer on the page."""
    policy, (task,) = trainer.policy, set(trainer.tasks(0))
    observation = await ScriptedEnv().reset(task)
    prompt = policy.tokenizer.apply_chat_template(
        list(observation.messages), add_generation_prompt=True
    )["input_ids"]
    word = observation.goal.removeprefix("Click ").removesuffix(".")
    (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
    right = policy.tokenizer.convert_tokens_to_ids(f"click('{line[1:3]}')")
    assert right != policy.tokenizer.unk_token_id
    with torch.no_grad():
        return policy.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)[right].item()


async def test_a_run(make_trainer, tmp_path):
    trainer = make_trainer(beta=0.01, **WORKS)
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    steps = await run(trainer)
    assert len(steps) == trainer.step == trainer.policy.version == 3
    assert trainer.episodes == 3 * 2 * 8
    for metrics in steps:
        assert set(metrics) == set(METRICS)
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["episode_length"] == metrics["completion_length"] == 1
        # Sampler and trainer are one model in float32: nothing but rounding between them.
        assert metrics["sampling/logp_difference"] < 1e-5
        assert 0 < metrics["entropy"] < math.log(16)
        assert metrics["tokens/distinct"] < metrics["tokens/rows"]
    after = trainer.policy.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()
    assert trainer.seconds["rollout"] == pytest.approx(sum(s["seconds/rollout"] for s in steps))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "gspo", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"loss": "cispo"},
        {"aggregation": "dr_grpo", "scale_rewards": "none", "baseline": "leave_one_out"},
    ],
    ids=str,
)
async def test_training_improves_success(make_trainer, options):
    trainer = make_trainer(steps=25, groups_per_step=4, **options)
    assert await success(trainer) < 0.1
    steps = await run(trainer)
    assert await success(trainer) > 0.9
    assert steps[-1]["success"] > 0.8


async def test_with_the_advantages_turned_around_it_gets_worse(make_trainer, monkeypatch):
    advantages = grpo.batch.group_advantages
    monkeypatch.setattr(grpo.batch, "group_advantages", lambda *a, **k: -advantages(*a, **k))
    trainer = make_trainer(steps=25, groups_per_step=4)
    before = await success(trainer)
    await run(trainer)
    assert await success(trainer) < before / 3


async def test_equal_rewards_skip_the_update(make_trainer):
    trainer = make_trainer(steps=2, task="click-two-words")  # one action: never solved
    trainer.tasks = lambda step: [Task("click-two-words", step)] * 2
    before = parameters(trainer)
    steps = await run(trainer)
    assert [metrics["update/skipped"] for metrics in steps] == [1, 1]
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1, 1]
    assert equal(before, parameters(trainer))
    assert trainer.policy.version == 0


async def test_a_step_that_nobody_survives_ends_the_run(make_trainer):
    trainer = make_trainer(lambda: ScriptedEnv(fail_at=1), steps=1)
    before = parameters(trainer)
    with pytest.raises(EnvError, match="no group of the step survived"):
        await run(trainer)
    assert equal(before, parameters(trainer))
    assert (trainer.step, trainer.episodes) == (0, 0)
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000000"]
    assert trainer.failures() == {
        "env/failures": 32,
        "env/episodes_dropped": 16,
        "env/groups_dropped": 2,
    }


async def test_a_step_goes_on_with_the_groups_that_are_left(make_trainer):
    """One session: of the first group seven episodes fail twice, of the second none."""
    fail_at = iter([1] * 7 + [0] + [1] * 7)
    trainer = make_trainer(lambda: ScriptedEnv(next(fail_at)), steps=1, size=1)
    (metrics,) = await run(trainer)
    assert metrics["env/groups_dropped"] == 1
    assert metrics["env/episodes_dropped"] == 7
    assert trainer.episodes == 8


async def test_failures_cost_retries_and_not_the_run(make_trainer):
    made = []

    def factory():
        made.append(ScriptedEnv(fail_at=7 if len(made) % 2 else 0))
        return made[-1]

    trainer = make_trainer(factory, **WORKS)
    steps = await run(trainer)
    assert steps[-1]["env/failures"] > 0
    assert trainer.episodes == 3 * 2 * 8 - steps[-1]["env/episodes_dropped"]


async def test_the_kl_penalty(make_trainer):
    trainer = make_trainer(beta=0.1, **WORKS)
    steps = await run(trainer)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-9)  # a new adapter is the reference
    assert steps[1]["kl"] > 1e-4
    free = updates(await run(make_trainer(**WORKS)))  # measured without the penalty too
    assert all("kl" in metrics for metrics in free)
    unmeasured = updates(await run(make_trainer(log_kl=False, **WORKS)))
    assert all("kl" not in metrics for metrics in unmeasured)


async def test_the_penalty_acts_where_the_rewards_are_equal(make_trainer, make_policy):
    trainer = make_trainer(steps=4, beta=1.0, learning_rate=0.01, policy=make_policy(double=False))
    trainer.tasks = lambda step: [Task("click-two-words", 7)] * 2  # one action: never solved
    steps = await run(trainer)
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1] * 4
    assert steps[-1]["kl"] < 0.9 * steps[0]["kl"]


async def test_a_strong_kl_penalty_holds_the_policy(make_trainer):
    free, held = make_trainer(steps=10), make_trainer(steps=10, beta=100.0)
    before = await success(held)
    await run(free)
    await run(held)
    assert await success(held) < before + 0.1 < await success(free)


async def test_the_second_update_of_a_batch_is_off_policy(make_trainer):
    once, twice = make_trainer(**WORKS), make_trainer(updates_per_batch=2, **WORKS)
    for metrics in updates(await run(once)):
        assert (metrics["ratio"], metrics["approx_kl"]) == (1, 0)
    steps = updates(await run(twice))
    for metrics in steps:
        assert abs(metrics["ratio"] - 1) > 1e-4
        assert metrics["approx_kl"] > 1e-5
    assert twice.policy.version == 2 * len(steps)


async def test_steps_are_small_and_clipped(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3, warmup_steps=2, **WORKS)
    steps = await run(trainer)
    assert all(metrics["grad_norm"] > 1e-3 for metrics in steps)  # as it was before clipping
    rates = [metrics["learning_rate"] for metrics in steps]
    assert rates == pytest.approx([0.01, 0.02, 0.03])
    total = sum(p.grad.square().sum() for p in trainer.policy.parameters()).sqrt()
    assert total.item() == pytest.approx(1e-3, rel=1e-2)


async def test_the_gradient_is_that_of_the_whole_batch(make_trainer):
    """However small the micro-batches are."""
    gradients = []
    for max_tokens in (10_000, 25):
        trainer = make_trainer(max_tokens_per_microbatch=max_tokens, **(WORKS | {"steps": 1}))
        await run(trainer)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


async def test_temperature_is_that_of_the_samples(make_trainer):
    trainer = make_trainer(temperature=2.0, **WORKS)
    assert all(metrics["sampling/logp_difference"] < 1e-5 for metrics in await run(trainer))


async def test_minutes(make_trainer, monkeypatch):
    clock = iter(range(0, 10_000, 5))  # seconds: each look at it takes five
    monkeypatch.setattr(grpo.trainer.time, "monotonic", lambda: float(next(clock)))
    trainer = make_trainer(steps=50, minutes=1.0)
    steps = await run(trainer)
    assert 0 < len(steps) < 10
    assert (trainer.config.folder / "checkpoints" / f"step-{len(steps):06d}").is_dir()


async def test_a_gradient_that_is_not_finite_skips_the_step(make_trainer):
    trainer = make_trainer(**(WORKS | {"steps": 1}))
    before = parameters(trainer)
    hook = trainer.policy.parameters()[3].register_hook(lambda gradient: gradient * math.nan)
    (metrics,) = await run(trainer)
    assert metrics["update/skipped"] == 1
    assert math.isnan(metrics["grad_norm"])
    assert equal(before, parameters(trainer))
    assert trainer.policy.version == 0
    hook.remove()
    trainer.config = replace(trainer.config, steps=4)
    done = updates(await run(trainer))
    assert trainer.policy.version == len(done)
    assert not equal(before, parameters(trainer))


async def test_two_steps_and_two_more_are_four(make_trainer, make_policy, tmp_path):
    options = {"valid_action_bonus": 0.5, "warmup_steps": 3, "learning_rate": 0.01}
    whole = make_trainer(steps=4, output=str(tmp_path / "whole"), **options)
    metrics = await run(whole)
    options["output"] = str(tmp_path / "parts")
    await run(make_trainer(steps=2, **options))
    # The adapter that the checkpoint replaces starts elsewhere.
    policy = make_policy(double=False, start=True, seed=5)
    resumed = make_trainer(steps=4, resume=True, policy=policy, **options)
    assert (resumed.step, resumed.episodes, policy.version) == (2, 32, 2)
    again = await run(resumed)
    assert equal(parameters(whole), parameters(resumed))
    for one, other in zip(metrics[2:], again, strict=True):
        same = [k for k in one if not k.startswith(("seconds/", "sampling/"))]
        assert [one[k] for k in same] == [other[k] for k in same]
    assert resumed.seconds["rollout"] > 0


async def test_a_run_can_be_repeated(make_trainer):
    one, other = make_trainer(**WORKS), make_trainer(**WORKS)
    await run(one)
    await run(other)
    assert equal(parameters(one), parameters(other))
    different = make_trainer(seed=1, **WORKS)
    await run(different)
    assert not equal(parameters(one), parameters(different))


def test_tasks_are_distinct_and_never_held_out(make_trainer):
    trainer = make_trainer(groups_per_step=50, task="click-test")
    first, second = Trainer.tasks(trainer, 0), Trainer.tasks(trainer, 1)
    assert first == Trainer.tasks(trainer, 0)
    assert first != second
    assert len(set(first)) == 50
    assert all(task.name == "click-test" and 0 <= task.seed < HELD_OUT for task in first)


async def test_the_loss_is_called_with_the_settings(make_trainer, monkeypatch):
    seen = []

    def spy(*args, **options):
        seen.append(options)
        return policy_loss(*args, **options)

    monkeypatch.setattr(grpo.trainer, "policy_loss", spy)
    options = {"epsilon_low": 0.1, "epsilon_high": 0.3, "delta": 2.0, "kl": "k2", "beta": 0.5}
    await run(make_trainer(steps=1, valid_action_bonus=0.5, **options))
    assert {name: seen[0][name] for name in options} == options


async def test_more_episodes_than_sessions(make_trainer):
    trainer = make_trainer(steps=1, size=3)
    await run(trainer)
    assert isinstance(trainer.rollouts.pool, EnvPool)
    assert trainer.rollouts.pool.created == 3
    assert trainer.episodes == 16
