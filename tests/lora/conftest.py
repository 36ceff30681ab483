"""Tiny random models of the two families that this project trains."""

import pytest
import torch
from torch import nn

from lora import lora_modules
from tests.support.models import make_model as make

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}


def make_llama(dtype=torch.float32):
    return make("llama", **SIZES).to(dtype)


def make_lfm2(dtype=torch.float32):
    return make("lfm2", **SIZES).to(dtype)


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
    """A function that fills every B with noise: an adapter with B = 0 changes nothing."""

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
