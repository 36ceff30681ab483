import math

import pytest
import torch

from grpo.model.logprobs import token_logprobs

T = 0.7
# Prefix 1 has three tokens and prefix 3 none, so chunks have different numbers of tokens, or 0.
POSITIONS = torch.tensor([0, 1, 1, 1, 2, 4])
TOKENS = torch.tensor([3, 0, 6, 6, 2, 5])


@pytest.fixture
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 7, bias=False).double()


@pytest.fixture
def hidden():
    random = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, dtype=torch.float64, generator=random).requires_grad_()


def value_and_gradient(hidden, head, **options):
    logprobs, entropy = token_logprobs(hidden, head, POSITIONS, TOKENS, temperature=T, **options)
    weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
    scalar = (logprobs * weights).sum() + (entropy * weights[:5].flip(0)).sum()
    return logprobs, entropy, *torch.autograd.grad(scalar, [hidden, head.weight])


def test_golden_values():
    # Logits (0, ln 3): p = (1/4, 3/4); at temperature 2, p = (1, √3) / (1 + √3).
    hidden = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    for temperature, p in ((1.0, 3 / 4), (2.0, math.sqrt(3) / (1 + math.sqrt(3)))):
        logprobs, entropy = token_logprobs(
            hidden, lambda x: x, torch.tensor([0, 0]), torch.tensor([0, 1]), temperature=temperature
        )
        expected = torch.tensor([math.log(1 - p), math.log(p)], dtype=torch.float64)
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-12)
        nats = -(p * math.log(p) + (1 - p) * math.log(1 - p))
        torch.testing.assert_close(entropy.item(), nats, rtol=0, atol=1e-12)


def test_equals_log_softmax(hidden, head):
    logprobs, entropy = token_logprobs(hidden, head, POSITIONS, TOKENS, temperature=T)
    distribution = (head(hidden) / T).log_softmax(-1)
    torch.testing.assert_close(logprobs, distribution[POSITIONS, TOKENS], rtol=0, atol=1e-12)
    expected = torch.distributions.Categorical(logits=distribution).entropy()
    torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5])
def test_chunks_change_neither_values_nor_gradients(hidden, head, chunk_size):
    whole = value_and_gradient(hidden, head)
    parts = value_and_gradient(hidden, head, chunk_size=chunk_size)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_gradient_equals_finite_differences(hidden, head):
    def scalar(hidden):
        return token_logprobs(hidden, head, POSITIONS, TOKENS, temperature=T, chunk_size=2)

    assert torch.autograd.gradcheck(scalar, hidden)


def test_only_one_chunk_of_logits_is_in_memory(hidden):
    seen = []

    def head(x):
        seen.append(len(x))
        return x

    logprobs, _ = token_logprobs(hidden, head, POSITIONS, TOKENS % 4, chunk_size=2)
    assert seen == [2, 2, 1]
    logprobs.sum().backward()  # recomputed chunk by chunk
    assert sorted(seen) == [1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_logits_are_normalised_in_float32(hidden, dtype):
    logprobs, entropy = token_logprobs(hidden.to(dtype), lambda x: x, POSITIONS, TOKENS % 4)
    exact, nats = token_logprobs(hidden.to(dtype).double(), lambda x: x, POSITIONS, TOKENS % 4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy.double(), nats, rtol=0, atol=1e-6)
