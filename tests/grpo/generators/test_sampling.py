"""Tokens of many requests at once are those drawn one by one, and hardly depend on rounding."""

import numpy as np
import pytest
import torch

from grpo.generators import sampling
from grpo.generators.base import GeneratorError
from grpo.generators.sampling import LEVELS, draw_tokens

WIDE = 5003


def one_by_one(logits, rows, temperatures, uniform):
    """Descend the tree of tokens with loops, in float64."""
    tokens, chosen = [], []
    branches = int(np.ceil(logits.shape[1] ** (1 / LEVELS)))
    for n, temperature, numbers in zip(rows, temperatures, uniform, strict=True):
        logprobs = torch.log_softmax(logits[n].double() / (temperature or 1.0), dim=-1)
        weights = np.append(logprobs.exp().numpy(), np.zeros(branches**LEVELS - logits.shape[1]))
        start, size = 0, branches**LEVELS
        for number in numbers:
            size //= branches
            shares = [weights[start + i * size :][:size].sum() for i in range(branches)]
            start += size * int(np.searchsorted(np.cumsum(shares), number * sum(shares), "right"))
        tokens.append(start if temperature else int(logits[n].argmax()))
        chosen.append(float(logprobs[tokens[-1]]))
    return tokens, chosen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "temperatures"),
    [
        ([0, 0, 1, 2, 3, 1, 0], [1.0] * 7),
        ([0, 0, 1, 2, 3, 1, 0], [0.0] * 7),
        ([2, 0, 2, 1, 2, 2, 0], [0.7, 1.3, 0.0, 1.0, 1.0, 0.7, 0.0]),
    ],
)
def test_many_are_as_one_by_one(monkeypatch, dtype, rows, temperatures):
    logits = 3 * torch.randn(4, WIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    uniform = np.random.default_rng(0).random((7, LEVELS))
    uniform[:2] = [[0.0], [np.nextafter(1, 0)]]
    tokens, logprobs = one_by_one(logits, rows, temperatures, uniform)
    drawn = []
    for block in (1, 2, 256):
        monkeypatch.setitem(sampling.BLOCK, "cpu", block)
        drawn.append(draw_tokens(logits, rows, temperatures, uniform))
        assert drawn[-1][0] == tokens
        np.testing.assert_allclose(drawn[-1][1], logprobs, rtol=1e-6)
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("size", [1, 2, 7, 16, 17, 90])
def test_tokens_are_as_frequent_as_probable(size):
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size))
    logits[:, 3:5] = -torch.inf
    count = 100_000
    uniform = np.random.default_rng(size).random((count, LEVELS))
    tokens, logprobs = draw_tokens(logits, [0] * count, [0.7] * count, uniform)
    expected = (logits[0] / 0.7).softmax(-1).double().numpy()
    deviation = np.sqrt(expected * (1 - expected) / count)
    share = np.bincount(tokens, minlength=size) / count
    assert (abs(share - expected) <= 4.5 * deviation).all()
    np.testing.assert_allclose(np.exp(logprobs), expected[tokens], rtol=1e-6)


def test_rounding_changes_few_draws():
    count, random = 20_000, torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1, 49_152, generator=random)
    rounded = logits + 1e-5 * torch.randn(logits.shape, generator=random)
    uniform = np.random.default_rng(0).random((count, LEVELS))
    one, other = (draw_tokens(x, [0] * count, [1.0] * count, uniform)[0] for x in (logits, rounded))
    assert sum(a != b for a, b in zip(one, other, strict=True)) <= 5


def test_a_distribution_is_shared(monkeypatch):
    rows, weights = [], sampling._Weights

    def counted(logits, scale):
        rows.append(len(logits))
        return weights(logits, scale)

    monkeypatch.setattr(sampling, "_Weights", counted)
    numbers = [[0.5] * LEVELS] * 5
    draw_tokens(torch.zeros(3, 5), [0, 1, 0, 0, 1], [1.0, 1.0, 1.0, 0.5, 1.0], numbers)
    assert rows == [3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(temperature):
    logits = torch.zeros(2, 4)
    logits[1, 2] = torch.nan
    with pytest.raises(GeneratorError, match="log-probabilities are not numbers"):
        draw_tokens(logits, [0, 1], [temperature] * 2, [[0.5] * LEVELS] * 2)
    assert draw_tokens(logits, [0], [temperature], [[0.0] * LEVELS])[0] == [0]
