"""Policies on the pretended GPU of `tests.support.fake_device`, beside the same ones on the CPU."""

import asyncio

import pytest
import torch

from grpo.generators.local import LocalGenerator
from grpo.model.lora_policy import LoRAPolicy
from tests.support.fake_device import DEVICE, FakeDevice, InlineExecutor
from tests.support.models import make_model

FAMILIES = {"llama": "tree", "lfm2": "tree", "mistral": "padded"}
"""The forward passes that the check at load time must find right, on the device as on the CPU."""


@pytest.fixture
def device():
    with FakeDevice() as device:
        yield device


@pytest.fixture(scope="session")
def loaded(tokenizer):
    """Policies by family, on the CPU and on the device; the check at load time has run on both."""
    policies = {}

    def load(family):
        if family not in policies:
            with FakeDevice():
                options = {"forward": FAMILIES[family], "cuda_graphs": False}
                policies[family] = [
                    LoRAPolicy(make_model(family).to(where), tokenizer, **options)
                    for where in ("cpu", DEVICE)
                ]
            assert all(policy.use_cache for policy in policies[family])
        return policies[family]

    return load


@pytest.fixture
def make_pair(loaded, device):
    """A function that returns a family's policies on the CPU and on the device.

    Their adapters are perturbed, in the same way each time.
    """

    def make(family):
        pair = loaded(family)
        random = torch.Generator().manual_seed(1)
        for p, q in zip(*(policy.parameters() for policy in pair), strict=True):
            noise = torch.empty(p.shape).normal_(std=0.2, generator=random)
            p.grad = q.grad = None
            p.data, q.data = noise, noise.to(DEVICE)
        for policy in pair:
            policy.version = 0
        return pair

    return make


@pytest.fixture
def sample():
    """A function that samples completions of (prompt, temperature) requests, all at once."""

    def run(policy, requests, **options):
        options = {"max_new_tokens": 6, "executor": InlineExecutor()} | options
        generator = LocalGenerator(policy, **options)

        async def generate():
            return await asyncio.gather(
                *(
                    generator.generate(prompt, seed=seed, temperature=temperature)
                    for seed, (prompt, temperature) in enumerate(requests)
                )
            )

        return asyncio.run(generate())

    return run
