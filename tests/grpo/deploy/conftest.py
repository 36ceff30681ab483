import pytest

from grpo.model.lora_policy import LoRAPolicy
from tests.support.byte_level import make_byte_level, make_family


@pytest.fixture(scope="session")
def byte_level():
    return make_byte_level()


@pytest.fixture
def family_policy(byte_level, perturb):
    """A function that makes a tiny policy whose adapter is not zero."""

    def make(family="llama", tokenizer=None, **sizes):
        policy = LoRAPolicy(make_family(family, **sizes), tokenizer or byte_level, lora_r=4)
        perturb(policy, std=0.1)
        return policy

    return make
