"""Real vLLM on the bundled model and on a tiny one of LFM2's shape."""

import importlib.util
import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from grpo.generators.probe import changed_adapter, logprob_gap
from grpo.models import load_model
from grpo.policy import LoRAPolicy


def pytest_collection_modifyitems(items):
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed: make test-vllm"))


@pytest.fixture(scope="session")
def lfm2_path(tmp_path_factory):
    """A folder with a tiny LFM2 of random weights and the bundled model's tokenizer."""
    from transformers import AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

    from grpo.bundled import bundled_model_path

    folder = tmp_path_factory.mktemp("lfm2")
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=192,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=4,
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.1,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
    )
    Lfm2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "config.json"
    sizes = {"block_dim": 128, "conv_dim": 128, "block_ff_dim": 192}  # what vLLM reads besides
    file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    return folder


@pytest.fixture(scope="session")
def make_policy(lfm2_path):
    """A function: a policy in float32 on "bundled" or "lfm2", its adapter fresh."""

    def make(family):
        name = str(lfm2_path) if family == "lfm2" else ""
        model, tokenizer = load_model(name, device="cpu", dtype=torch.float32)
        return LoRAPolicy(model, tokenizer)

    return make


@contextmanager
def change(policy, std=0.02):
    """Within it the policy's adapter is another, and its version higher."""
    with changed_adapter(policy) as add_noise:
        add_noise(std)
        yield


@pytest.fixture
def changed():
    return change


@pytest.fixture
def difference():
    """A function: mean and largest difference between reported and recomputed, in nats."""

    def compute(policy, completions, temperature=1.0):
        return logprob_gap(policy, completions, temperature or 1.0)

    return compute
