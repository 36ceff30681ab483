"""The sync check: every way in which a generator can miss an update is caught and named."""

import asyncio
import copy

import pytest
import torch

from grpo.config import Config
from grpo.generators import sync_check
from grpo.generators.base import GeneratorError
from grpo.generators.factory import open_generator
from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import changed_weights, check_sync, completion_logprobs


@pytest.fixture
def policy(make_policy):
    return make_policy(double=False)


class SeparateGenerator(LocalGenerator):
    """Samples from a copy of the policy, as a generator in another process does."""

    def __init__(self, policy, copy_weights=lambda own, trained: own.load_state_dict(trained)):
        super().__init__(copy.deepcopy(policy), max_new_tokens=8)
        self.trained, self.copy_weights = policy, copy_weights

    async def sync(self):
        self.copy_weights(self.policy.model, self.trained.model.state_dict())
        self.policy.version += 1  # or it would keep its cache


def parameters(policy):
    return [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_a_generator_that_follows_the_policy_passes(policy, temperature):
    before, version = parameters(policy), policy.version
    for generator in (LocalGenerator(policy), SeparateGenerator(policy)):
        report = await check_sync(policy, generator, temperature=temperature)
        assert report.gap < 1e-5
        assert report.changed_gap < 1e-5
        assert report.changed_shift > 0.05
        assert policy.version == version
        assert all(map(torch.equal, parameters(policy), before))


def copy_nothing(own, trained):
    """Copy nothing: the weights never arrive."""


def copy_some(own, trained):
    """Copy all but one kind of module."""
    own.load_state_dict({k: v for k, v in trained.items() if "q_proj.lora" not in k}, strict=False)


async def test_weights_that_never_arrive_are_caught(policy):
    before, version = parameters(policy), policy.version
    with pytest.raises(GeneratorError, match=r"does not follow the trained weights.*vllm-sync"):
        await check_sync(policy, SeparateGenerator(policy, copy_nothing))
    assert policy.version == version
    assert all(map(torch.equal, parameters(policy), before))


async def test_weights_that_arrive_in_part_are_caught(policy):
    with pytest.raises(GeneratorError, match="does not follow the trained weights"):
        await check_sync(policy, SeparateGenerator(policy, copy_some))


async def test_a_cache_of_older_weights_is_caught(policy):
    class Stale(SeparateGenerator):
        syncs = 0

        async def sync(self):
            self.syncs += 1
            if self.syncs < 3:
                await super().sync()

    with pytest.raises(GeneratorError, match="keeps a cache of older weights"):
        await check_sync(policy, Stale(policy))


async def test_a_generator_that_does_not_wake_up_whole_is_caught(policy):
    class Forgetful(SeparateGenerator):
        asleep = False

        async def sleep(self):
            self.asleep = True

        async def sync(self):
            await super().sync()
            if self.asleep:
                self.policy.model.get_input_embeddings().weight.data.zero_()

    with pytest.raises(GeneratorError, match="does not follow the trained weights"):
        await check_sync(policy, Forgetful(policy))


async def test_another_model_is_caught(policy):
    def noisy(own, trained):
        own.load_state_dict({k: v + 0.02 * torch.randn(v.shape) for k, v in trained.items()})

    torch.manual_seed(0)
    with pytest.raises(GeneratorError, match="does not compute the same model"):
        await check_sync(policy, SeparateGenerator(policy, noisy))


async def test_log_probabilities_without_the_temperature_are_caught(policy):
    class IgnoresTemperature(SeparateGenerator):
        async def generate(self, prompt_ids, *, temperature, **options):
            return await super().generate(prompt_ids, temperature=1.0, **options)

    await check_sync(policy, IgnoresTemperature(policy))
    with pytest.raises(GeneratorError, match="does not compute the same model"):
        await check_sync(policy, IgnoresTemperature(policy), temperature=0.5)


async def test_a_bound_below_rounding_fails(policy):
    with pytest.raises(GeneratorError, match="expected at most 1e-12"):
        await check_sync(policy, SeparateGenerator(policy), 1e-12)


async def test_the_weights_are_restored_after_a_failure(policy):
    before, version = parameters(policy), policy.version

    def fail():
        with changed_weights(policy) as change:
            change(0.1)
            assert not any(map(torch.equal, parameters(policy), before))
            assert policy.version > version
            raise OSError("failed")

    with pytest.raises(OSError, match="failed"):
        fail()
    assert policy.version == version
    assert all(map(torch.equal, parameters(policy), before))


async def test_recomputed_logprobs_are_in_the_order_of_tokens(policy):
    generator = LocalGenerator(policy, max_new_tokens=6)
    requests = [([3, 4, 5], 0), ([3, 4], 1), ([7], 2), ([3, 4, 5], 3)]
    completions = await asyncio.gather(*(generator.generate(p, seed=s) for p, s in requests))
    for chosen in (completions, completions[:1]):
        reported = torch.tensor([x for c in chosen for x in c.logprobs])
        assert (completion_logprobs(policy, chosen) - reported).abs().max() < 1e-5


async def test_the_local_generator_is_not_checked(policy, executor, monkeypatch):
    monkeypatch.setattr(sync_check, "check_sync", None)
    async with open_generator(Config(max_new_tokens=5), policy, executor) as generator:
        assert isinstance(generator, LocalGenerator)
        assert len((await generator.generate([3], seed=0)).completion_ids) <= 5
