"""Fixtures for real vLLM with the bundled model and a tiny LFM2."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from grpo.generators.sync_check import changed_weights, logprob_gap
from grpo.model.loading import load_model
from grpo.model.lora_policy import LoRAPolicy
from tests.support.models import save_tiny_lfm2


def pytest_collection_modifyitems(items):
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed: make test-vllm"))


@pytest.fixture(scope="session")
def lfm2_path(tmp_path_factory):
    """A folder with a tiny randomly initialised LFM2 and the bundled model's tokenizer."""
    from transformers import AutoTokenizer

    from grpo.model.bundled import bundled_model_path

    folder = tmp_path_factory.mktemp("lfm2")
    save_tiny_lfm2(folder, AutoTokenizer.from_pretrained(bundled_model_path()))
    return folder


@pytest.fixture(scope="session")
def make_policy(lfm2_path):
    """A function that makes a float32 policy on "bundled" or "lfm2" with a new adapter."""

    def make(family):
        name = str(lfm2_path) if family == "lfm2" else ""
        model, tokenizer = load_model(name, device="cpu", dtype=torch.float32)
        return LoRAPolicy(model, tokenizer)

    return make


@contextmanager
def change(policy, std=0.02):
    """Within this context the policy's adapter is changed and its version higher."""
    with changed_weights(policy) as add_noise:
        add_noise(std)
        yield


@pytest.fixture
def changed():
    return change


@pytest.fixture
def difference():
    """A function: mean difference of reported and recomputed log-probabilities, in nats."""

    def compute(policy, completions, temperature=1.0):
        return logprob_gap(policy, completions, temperature or 1.0)

    return compute
