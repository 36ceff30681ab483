"""Tiny random models of the two families that this project trains."""

import pytest
import torch
from torch import nn
from transformers import Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lora import lora_modules

SHARED = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def make_llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHARED)).to(dtype).eval()


def make_lfm2(dtype=torch.float32):
    torch.manual_seed(0)
    layers = ["conv", "full_attention", "conv"]
    config = Lfm2Config(num_hidden_layers=3, layer_types=layers, **SHARED)
    return Lfm2ForCausalLM(config).to(dtype).eval()


MAKERS = {"llama": make_llama, "lfm2": make_lfm2}


@pytest.fixture(params=sorted(MAKERS))
def make_model(request):
    """A function that makes the same model each time: `make_model(dtype=torch.float32)`."""
    return MAKERS[request.param]


@pytest.fixture
def input_ids():
    return torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def randomize():
    """A function that fills every B, so that the adapter does something."""

    def fill(model, seed=2):
        generator = torch.Generator().manual_seed(seed)
        for module in lora_modules(model).values():
            nn.init.normal_(module.lora_B, std=0.5, generator=generator)

    return fill


@pytest.fixture
def llama():
    return make_llama()


@pytest.fixture
def lfm2():
    return make_lfm2()
