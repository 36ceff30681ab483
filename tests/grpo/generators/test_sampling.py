"""Tokens of many requests at once are, bit for bit, those drawn one by one."""

import numpy as np
import pytest
import torch

from grpo.generators import sampling
from grpo.generators.base import GeneratorError
from grpo.generators.sampling import draw_tokens

WIDE = 5003


def one_by_one(logits, rows, temperatures, uniform):
    tokens, chosen = [], []
    for n, temperature, number in zip(rows, temperatures, uniform, strict=True):
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = torch.log_softmax(logits[n].to(wide) / (temperature or 1.0), dim=-1)
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        at = torch.searchsorted(cumulative, number * cumulative[-1], right=True)
        tokens.append(int(at if temperature else logprobs.argmax()))
        chosen.append(float(logprobs[tokens[-1]]))
    return tokens, chosen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1, 2, 256])
@pytest.mark.parametrize(
    ("rows", "temperatures"),
    [
        ([0, 0, 1, 2, 3, 1, 0], [1.0] * 7),
        ([0, 0, 1, 2, 3, 1, 0], [0.0] * 7),
        ([2, 0, 2, 1, 2, 2, 0], [0.7, 1.3, 0.0, 1.0, 1.0, 0.7, 0.0]),
    ],
)
def test_blocks_change_nothing(monkeypatch, dtype, block, rows, temperatures):
    monkeypatch.setitem(sampling.BLOCK, "cpu", block)
    logits = 3 * torch.randn(4, WIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    uniform = np.random.default_rng(0).random(7).tolist()
    uniform[:2] = 0.0, float(np.nextafter(1, 0))
    got = draw_tokens(logits, rows, temperatures, uniform)
    assert got == one_by_one(logits, rows, temperatures, uniform)


def test_a_distribution_is_shared(monkeypatch):
    rows, draw = [], sampling._draw

    def counted(logits, *others, **options):
        rows.append(len(logits))
        return draw(logits, *others, **options)

    monkeypatch.setattr(sampling, "_draw", counted)
    draw_tokens(torch.zeros(3, 5), [0, 1, 0, 0, 1], [1.0, 1.0, 1.0, 0.5, 1.0], [0.5] * 5)
    assert sum(rows) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(temperature):
    logits = torch.zeros(2, 4)
    logits[1, 2] = torch.nan
    with pytest.raises(GeneratorError, match="log-probabilities are not numbers"):
        draw_tokens(logits, [0, 1], [temperature] * 2, [0.5] * 2)
    assert draw_tokens(logits, [0], [temperature], [0.0])[0] == [0]
