"""The start-up test of a sampler: each way of not following the policy is seen and named."""

import asyncio
import copy

import pytest
import torch

from grpo.config import Config
from grpo.generators import sync_check as probe
from grpo.generators.base import GeneratorError
from grpo.generators.factory import open_generator
from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import changed_adapter, check_sync, completion_logprobs


@pytest.fixture
def policy(make_policy):
    return make_policy(double=False)


class Apart(LocalGenerator):
    """Samples from a copy of the policy, as a sampler in another process does."""

    def __init__(self, policy, give=lambda own, trained: own.load_state_dict(trained)):
        super().__init__(copy.deepcopy(policy), max_new_tokens=8)
        self.trained, self.give = policy, give

    async def sync(self):
        self.give(self.policy.model, self.trained.model.state_dict())
        self.policy.version += 1  # or it would keep its cache


def bits(policy):
    return [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_a_sampler_that_follows_passes(policy, temperature):
    before, version = bits(policy), policy.version
    for generator in (LocalGenerator(policy), Apart(policy)):
        report = await check_sync(policy, generator, temperature=temperature)
        assert report.gap < 1e-5
        assert report.changed_gap < 1e-5
        assert report.changed_shift > 0.05
        assert policy.version == version
        assert all(map(torch.equal, bits(policy), before))


def nothing(own, trained):
    """The adapter never arrives."""


def half(own, trained):
    """One of the modules is not served."""
    own.load_state_dict({k: v for k, v in trained.items() if "q_proj.lora" not in k}, strict=False)


async def test_a_sampler_that_is_never_given_the_adapter_is_caught(policy):
    before, version = bits(policy), policy.version
    with pytest.raises(GeneratorError, match=r"does not follow the adapter.*vllm-sync"):
        await check_sync(policy, Apart(policy, nothing))
    assert policy.version == version
    assert all(map(torch.equal, bits(policy), before))


async def test_a_sampler_that_is_given_half_of_it_is_caught(policy):
    with pytest.raises(GeneratorError, match="does not follow the adapter"):
        await check_sync(policy, Apart(policy, half))


async def test_a_sampler_that_keeps_an_older_cache_is_caught(policy):
    class Cached(Apart):
        syncs = 0

        async def sync(self):
            self.syncs += 1
            if self.syncs < 3:
                await super().sync()

    with pytest.raises(GeneratorError, match="kept something of an older adapter"):
        await check_sync(policy, Cached(policy))


async def test_another_model_is_caught(policy):
    def noisy(own, trained):
        own.load_state_dict({k: v + 0.02 * torch.randn(v.shape) for k, v in trained.items()})

    torch.manual_seed(0)
    with pytest.raises(GeneratorError, match="does not compute the same model"):
        await check_sync(policy, Apart(policy, noisy))


async def test_log_probabilities_without_the_temperature_are_caught(policy):
    class Raw(Apart):
        async def generate(self, prompt_ids, *, temperature, **options):
            return await super().generate(prompt_ids, temperature=1.0, **options)

    await check_sync(policy, Raw(policy))
    with pytest.raises(GeneratorError, match="does not compute the same model"):
        await check_sync(policy, Raw(policy), temperature=0.5)


async def test_a_bound_that_noise_breaks_is_broken(policy):
    with pytest.raises(GeneratorError, match="at most 1e-12 was expected"):
        await check_sync(policy, Apart(policy), 1e-12)


async def test_the_adapter_is_put_back_after_a_failure(policy):
    before, version = bits(policy), policy.version

    def fail():
        with changed_adapter(policy) as change:
            change(0.1)
            assert not any(map(torch.equal, bits(policy), before))
            assert policy.version > version
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert policy.version == version
    assert all(map(torch.equal, bits(policy), before))


async def test_recomputed_logprobs_are_in_the_order_of_the_tokens(policy):
    generator = LocalGenerator(policy, max_new_tokens=6)
    asked = [([3, 4, 5], 0), ([3, 4], 1), ([7], 2), ([3, 4, 5], 3)]
    completions = await asyncio.gather(*(generator.generate(p, seed=s) for p, s in asked))
    for chosen in (completions, completions[:1]):
        reported = torch.tensor([x for c in chosen for x in c.logprobs])
        assert (completion_logprobs(policy, chosen) - reported).abs().max() < 1e-5


async def test_the_local_generator_needs_no_test(policy, executor, monkeypatch):
    monkeypatch.setattr(probe, "check_sync", None)
    async with open_generator(Config(max_new_tokens=5), policy, executor) as generator:
        assert isinstance(generator, LocalGenerator)
        assert len((await generator.generate([3], seed=0)).completion_ids) <= 5
