"""What goes wrong in a run, and what it costs."""

import math

import pytest
import torch

from grpo.generators.base import GeneratorError
from grpo.training.checkpoint import checkpoints
from grpo.training.updater import TrainingError

WORKS = {"valid_action_bonus": 0.5}


async def run(trainer):
    return [step.metrics async for step in trainer.train()]


def parameters(trainer):
    return [p.detach().clone() for p in trainer.policy.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def small_memory(trainer, monkeypatch, rows):
    """Let a forward pass of more than `rows` rows ask the allocator for ten petabytes."""
    logprobs = trainer.policy.logprobs

    def limited(batch, **options):
        if len(batch) > rows:
            torch.empty(10**16)
        return logprobs(batch, **options)

    monkeypatch.setattr(trainer.policy, "logprobs", limited)


@pytest.mark.parametrize("options", [{}, {"updates_per_batch": 2}, {"forward": "padded"}], ids=str)
async def test_out_of_memory_halves_the_micro_batches(
    make_trainer, make_policy, monkeypatch, caplog, options
):
    options = dict(options)
    forward = options.pop("forward", "tree")

    def make():
        policy = make_policy(double=False, start=True, forward=forward)
        return make_trainer(steps=1, policy=policy, **WORKS, **options)

    large, tight = make(), make()
    small_memory(tight, monkeypatch, rows=3)
    (expected,), (metrics,) = await run(large), await run(tight)
    assert metrics["update/memory_halvings"] > 3
    assert tight.updater.max_tokens == 4096 // 2 ** metrics["update/memory_halvings"]
    assert "out of memory in the update: micro-batches of" in caplog.text
    one, other = (
        torch.cat([p.grad.flatten() for p in t.policy.parameters()]) for t in (large, tight)
    )
    assert one.abs().max() > 1e-2
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for name in ("loss", "kl", "grad_norm", "update/entropy"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6)


async def test_a_row_that_does_not_fit_ends_the_run(make_trainer, monkeypatch):
    trainer = make_trainer(steps=1, **WORKS)
    small_memory(trainer, monkeypatch, rows=0)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        await run(trainer)


async def test_another_error_of_the_update_is_raised(make_trainer, monkeypatch):
    trainer = make_trainer(steps=1, **WORKS)
    monkeypatch.setattr(trainer.policy, "logprobs", lambda *_, **__: torch.zeros(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        await run(trainer)
    assert trainer.updater.halvings == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_updates_that_are_never_finite_end_the_run(make_trainer, value):
    trainer = make_trainer(steps=9, max_bad_updates=3, **WORKS)
    steps = []
    named = dict(trainer.policy.model.named_parameters())
    name, parameter = next((k, p) for k, p in named.items() if p.requires_grad)
    before = parameters(trainer)

    async def train():
        async for step in trainer.train():
            steps.append(step.metrics)
            if step.step == 1:
                parameter.register_hook(lambda gradient: gradient * value)

    with pytest.raises(TrainingError) as error:
        await train()
    assert trainer.step == 3  # one good, two bad, and the third bad one is not a step
    assert [metrics["update/skipped"] for metrics in steps] == [0, 1, 1]
    text = str(error.value)
    assert text.startswith("3 updates in a row were not finite: loss ")
    assert f"gradients that are not finite: 1 tensors, the first {name}." in text
    assert "(float32)" in text
    assert trainer.policy.version == 1
    assert all(p.isfinite().all() for p in trainer.policy.parameters())
    assert not equal(before, parameters(trainer))  # the good one
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000003"]


async def test_bad_updates_between_good_ones_are_only_counted(make_trainer):
    trainer = make_trainer(steps=6, max_bad_updates=2, **WORKS)
    parameter = trainer.policy.parameters()[0]
    parameter.register_hook(lambda gradient: gradient * (math.nan if trainer.step % 2 else 1))
    steps = await run(trainer)
    assert [metrics["update/skipped"] for metrics in steps] == [0, 1] * 3


async def test_a_generator_that_fails_ends_the_run_and_loses_nothing(make_trainer, make_policy):
    trainer = make_trainer(steps=5, **WORKS)
    generate = trainer.generator.generate

    async def fail_later(*args, **options):
        if trainer.step == 2:
            raise GeneratorError("the generator is gone")
        return await generate(*args, **options)

    trainer.generator.generate = fail_later
    with pytest.raises(GeneratorError, match="the generator is gone"):
        await run(trainer)
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000002"]
    whole = make_trainer(steps=5, output=f"{trainer.config.folder}-whole", **WORKS)
    await run(whole)
    policy = make_policy(double=False, start=True, seed=9)
    resumed = make_trainer(steps=5, resume=True, policy=policy, **WORKS)
    await run(resumed)
    assert equal(parameters(whole), parameters(resumed))


async def test_a_full_disk_costs_a_checkpoint_and_not_the_run(make_trainer, full_disk, caplog):
    trainer = make_trainer(steps=4, save_every=1, **WORKS)
    failures = []
    async for step in trainer.train():
        failures.append(step.metrics["checkpoint/failures"])
        full_disk(100 if step.step == 2 else -1)
    assert failures == [0, 0, 1, 1]
    assert "the checkpoint of step 2 could not be saved" in caplog.text
    names = [path.name for path in checkpoints(trainer.config.folder)]
    assert names == ["step-000003", "step-000004"]


async def test_a_disk_that_is_full_at_the_end_is_an_error(make_trainer, full_disk):
    trainer = make_trainer(steps=2, save_every=1, **WORKS)
    steps = trainer.train()
    await anext(steps)
    await anext(steps)
    full_disk(100)
    with pytest.raises(OSError, match="too large"):
        await anext(steps)
    full_disk(-1)
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000001"]
