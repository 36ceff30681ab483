"""Training every weight: gradients, master weights, the reference, files, resuming."""

import math

import pytest
import torch
from safetensors import safe_open

from grpo.algorithm.batch import split_batch
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.generators.factory import open_generator
from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import check_sync
from grpo.model.full_policy import FullPolicy
from grpo.model.loading import load_policy
from grpo.training.updater import TrainingError

T = 0.8
WORKS = {"train": "full", "group_size": 16, "learning_rate": 1e-3, "beta": 0.05}


@pytest.fixture
def make_full(base_model, tokenizer):
    """A function that makes a tiny policy of which every weight is trained."""

    def make(family="llama", dtype=torch.float64, **options):
        return FullPolicy(base_model(family, dtype), tokenizer, **options)

    return make


def parameters(policy):
    return [p.detach().clone() for p in policy.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def close(one, other, atol=1e-10):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def scalar(logprobs, entropy):
    factors = torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)
    return (logprobs * factors).sum() + (entropy * factors.flip(0, 1)).sum()


async def run(trainer):
    return [step.metrics async for step in trainer.train()]


@pytest.mark.parametrize("family", ["llama", "lfm2"])  # LFM2's embeddings are tied
def test_both_forwards_have_the_gradient_of_the_models_own_rows(
    make_full, groups, batch_of, row_by_row, gradient, family
):
    batch = batch_of(groups[:2])
    policy = make_full(family)
    assert len(policy.parameters()) == len(list(policy.model.parameters()))
    expected = gradient(policy, scalar(*row_by_row(policy.model, batch, T)))
    assert expected.abs().max() > 1  # the bound is an absolute one
    for forward in ("tree", "padded"):
        policy.forward_mode = forward
        close(gradient(policy, scalar(*policy.logprobs(batch, temperature=T))), expected)

    policy.forward_mode = "tree"  # and in parts that share a prefix
    parts = split_batch(batch, 9)
    prefix = policy.shared_prefix(parts)
    for part in parts:
        policy.logprobs(part, temperature=T, prefix=prefix).logprobs.sum().backward()
    prefix.backward()
    whole = gradient(policy, policy.logprobs(batch, temperature=T).logprobs.sum())
    close(torch.cat([p.grad.flatten() for p in policy.parameters()]), whole)


def test_steps_that_bfloat16_would_round_away_add_up(make_full):
    policy = make_full(dtype=torch.bfloat16)
    plain = make_full(dtype=torch.bfloat16).model
    start = [p.detach().float() for p in policy.model.parameters()]
    masters = policy.parameters()
    assert {p.dtype for p in masters} == {torch.float32}

    def step(parameters):
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, foreach=True)
        for p in parameters:
            p.grad = torch.ones_like(p)
        for _ in range(1000):
            optimizer.step()

    step(masters)
    policy.copy_masters_to_model()
    step(list(plain.parameters()))
    shares = [
        sum((p.float() != s).sum() for p, s in zip(model.parameters(), start, strict=True))
        / sum(s.numel() for s in start)
        for model in (policy.model, plain)
    ]
    assert shares[0] > 0.7
    assert shares[1] < 0.02
    for p, s in zip(masters, start, strict=True):
        close(p.detach(), s - 1e-3, 5e-5)  # what float32 rounds of 1000 steps


def test_gradients_are_added_up_in_float32(make_full, batch):
    policy = make_full("lfm2", dtype=torch.bfloat16)
    parts = split_batch(batch, 1)

    def gradients(scale):
        policy.logprobs(parts[0]).logprobs.sum().mul(scale).backward()
        assert all(p.grad is None for p in policy.model.parameters())
        return [p.grad.clone() for p in policy.parameters()]

    one = gradients(1)
    for p in policy.parameters():
        p.grad = None
    small = gradients(2**-10)  # less than bfloat16's last digit of `one`
    assert sum(g.norm() for g in small) > 0
    both = gradients(1)
    for a, b, c in zip(one, small, both, strict=True):
        assert torch.equal(c, a + b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_reference_has_the_initial_weights(make_full, batch, perturb, dtype):
    policy = make_full(dtype=dtype)
    base = policy.logprobs(batch).logprobs.detach()
    perturb(policy)
    policy.copy_masters_to_model()
    before, model = parameters(policy), [p.detach().clone() for p in policy.model.parameters()]
    with torch.no_grad():
        with policy.reference():
            assert torch.equal(policy.logprobs(batch).logprobs, base)
        assert (policy.logprobs(batch).logprobs - base).abs().max() > 0.1
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert equal(before, parameters(policy))
    assert equal(model, policy.model.parameters())


def test_a_reference_that_nobody_needs_is_not_kept(make_full, tmp_path):
    make_full(dtype=torch.float32).save(tmp_path)
    for options, kept in (({}, True), ({"log_kl": False}, False)):
        config = Config(model=str(tmp_path), train="full", device="cpu", **options)
        assert (load_policy(config)._start is not None) == kept
    with (
        pytest.raises(RuntimeError, match="keep_reference is False"),
        make_full(keep_reference=False).reference(),
    ):
        pass


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_saved_policy_is_a_model(make_full, tokenizer, batch, perturb, tmp_path, family):
    from transformers import AutoModelForCausalLM

    policy = make_full(family, dtype=torch.bfloat16)
    perturb(policy)
    policy.copy_masters_to_model()
    assert policy.adapter() is None
    assert policy.weights_dirname == "model"
    policy.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert len(file.keys()) == len(policy.parameters())  # tied weights once
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118

    config = Config(model=str(tmp_path), train="full", device="cpu", dtype="bfloat16")
    again = load_policy(config)
    assert torch.equal(again.logprobs(batch).logprobs, policy.logprobs(batch).logprobs)
    assert equal(parameters(again), [p.bfloat16().float() for p in parameters(policy)])
    adapted = load_policy(config.replace(train="lora"))
    assert torch.equal(adapted.logprobs(batch).logprobs, policy.logprobs(batch).logprobs)
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert equal(wide.parameters(), parameters(policy))

    other = make_full(family, dtype=torch.bfloat16)
    other.load(tmp_path)
    assert equal(parameters(other), parameters(policy))
    assert equal(other.model.parameters(), policy.model.parameters())
    before = parameters(other)
    one = make_full("llama" if family == "lfm2" else "lfm2")
    one.save(tmp_path / "other")
    for folder in (tmp_path / "other", tmp_path / "none"):
        with pytest.raises(ValueError, match=rf"^(cannot load )?the model in '{folder}'"):
            other.load(folder)
    assert equal(before, parameters(other))


async def test_a_run_learns_and_a_resumed_run_is_bitwise_equal(make_trainer, make_full, tmp_path):
    def make(steps, output, **options):
        options = {**WORKS, "steps": steps, "output": str(tmp_path / output), **options}
        return make_trainer(policy=make_full(dtype=torch.bfloat16), **options)

    whole = make(26, "whole")
    metrics = await run(whole)
    success = [m["success"] for m in metrics]
    assert max(success[:3]) < 0.1
    assert min(success[-3:]) > 0.6
    assert metrics[-1]["kl"] > 0.1
    await run(make(5, "parts"))
    resumed = make(26, "parts", resume=True)
    assert resumed.step == 5
    again = await run(resumed)
    assert equal(parameters(whole.policy), parameters(resumed.policy))
    assert equal(whole.policy.model.parameters(), resumed.policy.model.parameters())
    for one, other in zip(metrics[5:], again, strict=True):
        same = [k for k in one if not k.startswith(("seconds/", "sampling/"))]
        assert [one[k] for k in same] == [other[k] for k in same]
    with pytest.raises(ConfigError, match="train was 'full' and is 'lora'"):
        make_trainer(**{**WORKS, "train": "lora", "output": str(tmp_path / "parts")}, resume=True)


async def test_gradients_that_are_not_finite_are_skipped_and_named(make_trainer, make_full):
    policy = make_full(dtype=torch.bfloat16)
    before = parameters(policy)
    name, weight = list(policy.model.named_parameters())[3]
    weight.register_hook(lambda gradient: gradient * math.nan)
    trainer = make_trainer(policy=policy, steps=5, **WORKS)
    with pytest.raises(TrainingError, match=f"not finite: 1 tensors, the first {name}"):
        await run(trainer)
    assert equal(before, parameters(policy))


async def test_a_full_disk_costs_checkpoints_and_is_an_error_at_the_end(
    make_trainer, make_full, full_disk
):
    trainer = make_trainer(policy=make_full(dtype=torch.bfloat16), steps=2, save_every=1, **WORKS)
    full_disk(20_000)  # less than the weights
    with pytest.raises(OSError, match="cannot write"):
        await run(trainer)
    assert trainer.saver.failures == 3  # the last one ends the run


async def test_the_sync_check_changes_the_weights_and_restores_them(make_full):
    policy = make_full(dtype=torch.bfloat16)
    before = parameters(policy)
    report = await check_sync(policy, LocalGenerator(policy, max_new_tokens=8))
    assert report.changed_shift > 0.1
    assert equal(before, parameters(policy))
    assert equal(policy.model.parameters(), [p.bfloat16() for p in before])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "vllm", "vllm_sync": "adapter"}, "vllm_sync=adapter needs train=lora"),
        ({"backend": "vllm-server", "vllm_deadline": 1.0}, "backend=vllm-server needs train=lora"),
    ],
    ids=str,
)
async def test_what_needs_an_adapter_is_rejected(make_full, executor, options, message):
    policy = make_full()
    with pytest.raises(ConfigError, match=message):
        async with open_generator(Config(train="full", **options), policy, executor):
            pass
