"""LoRALinear against values computed by hand and finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALinear


def golden_layer(**kwargs):
    """W = [[1, 2], [3, 4]], b = [1, -1], A = [[1, -2]], B = [[2], [3]], alpha / r = 0.5."""
    base = nn.Linear(2, 2)
    base.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    base.bias.data = torch.tensor([1.0, -1.0])
    layer = LoRALinear(base, r=1, alpha=0.5, **kwargs)
    layer.lora_A.data = torch.tensor([[1.0, -2.0]])
    layer.lora_B.data = torch.tensor([[2.0], [3.0]])
    return layer


def random_layer(dtype=torch.float32, n_in=5, n_out=3, r=2, alpha=3.0):
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(n_in, n_out, dtype=dtype), r=r, alpha=alpha)
    nn.init.normal_(layer.lora_B)
    return layer


def test_golden_forward():
    # x = [3, 1]: Wx + b = [3+2+1, 9+4-1] = [6, 12]; Ax = 3-2 = 1; 0.5 * B = [1, 1.5].
    y = golden_layer()(torch.tensor([[3.0, 1.0]]))
    assert torch.equal(y, torch.tensor([[7.0, 13.5]]))


def test_golden_merge():
    # 0.5 * B A = 0.5 * [[2, -4], [3, -6]] = [[1, -2], [1.5, -3]].
    layer = golden_layer()
    layer.merge()
    assert torch.equal(layer.weight, torch.tensor([[2.0, 0.0], [4.5, 1.0]]))
    assert torch.equal(layer.base_weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_golden_gradients():
    # L = sum(y): dL/dB = s * [Ax, Ax]^T = [[0.5], [0.5]]; dL/dA = s * (2 + 3) * x = [7.5, 2.5].
    layer = golden_layer()
    layer(torch.tensor([[3.0, 1.0]])).sum().backward()
    assert torch.equal(layer.lora_B.grad, torch.tensor([[0.5], [0.5]]))
    assert torch.equal(layer.lora_A.grad, torch.tensor([[7.5, 2.5]]))
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_gradcheck_in_float64():
    layer = random_layer(torch.float64).double()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)

    def forward(x, a, b):
        return torch.func.functional_call(layer, {"lora_A": a, "lora_B": b}, (x,))

    assert torch.autograd.gradcheck(forward, (x, layer.lora_A, layer.lora_B))


def test_float64_model_with_float32_masters_computes_in_float64():
    layer = random_layer(torch.float64)
    assert layer.lora_A.dtype == torch.float32
    x = torch.randn(4, 5, dtype=torch.float64)
    exact = F.linear(x, layer.weight, layer.bias)
    exact = exact + 1.5 * x @ layer.lora_A.double().T @ layer.lora_B.double().T
    y = layer(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, exact, rtol=0, atol=1e-12)


def test_bfloat16_base_keeps_float32_masters():
    layer = random_layer(torch.bfloat16)
    assert (layer.weight.dtype, layer.lora_A.dtype, layer.lora_B.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    y = layer(torch.randn(4, 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.lora_A.grad.dtype == torch.float32
    # A step of 1e-4 on a weight of 1 is below bfloat16's spacing, and must not be lost.
    layer.lora_B.data.fill_(1.0)
    layer.lora_B.grad = torch.ones_like(layer.lora_B)
    torch.optim.SGD([layer.lora_B], lr=1e-4).step()
    assert torch.all(layer.lora_B < 1.0)


def test_a_new_layer_equals_its_base_bitwise():
    torch.manual_seed(0)
    base = nn.Linear(5, 3)
    x = torch.randn(4, 5)
    expected = base(x)
    layer = LoRALinear(base, r=2, alpha=4)
    assert torch.equal(layer(x), expected)
    assert torch.all(layer.lora_A != 0)


def test_initial_values():
    # kaiming_uniform(a=sqrt(5)) is uniform in +-1/sqrt(in).
    generator = torch.Generator().manual_seed(3)
    layer = LoRALinear(nn.Linear(64, 8), r=32, alpha=4, generator=generator)
    bound = 1 / math.sqrt(64)
    assert layer.lora_A.abs().max() <= bound
    assert layer.lora_A.abs().max() > 0.99 * bound
    again = torch.Generator().manual_seed(3)
    same = LoRALinear(nn.Linear(64, 8), r=32, alpha=4, generator=again)
    assert torch.equal(layer.lora_A, same.lora_A)


@pytest.mark.parametrize("merged", [False, True])
def test_a_disabled_layer_equals_its_base_bitwise(merged):
    torch.manual_seed(0)
    base = nn.Linear(5, 3)
    x = torch.randn(4, 5)
    expected = base(x)
    layer = LoRALinear(base, r=2, alpha=4)
    nn.init.normal_(layer.lora_B)
    if merged:
        layer.merge()
    assert not torch.allclose(layer(x), expected)
    layer.enabled = False
    assert torch.equal(layer(x), expected)


def test_merged_equals_adapter_in_float64():
    layer = random_layer(torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = layer(x)
    layer.merge()
    assert not torch.equal(layer.weight, layer.base_weight)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerge_is_bitwise(dtype):
    layer = random_layer(dtype, n_in=64, n_out=64)
    before, state = layer.weight.clone(), set(layer.state_dict())
    layer.merge()
    assert set(layer.state_dict()) == state
    layer.lora_B.data.mul_(2)  # changes of A and B while merged do not matter
    layer.unmerge()
    assert torch.equal(layer.weight, before)
    assert not layer.weight.requires_grad


def test_merge_does_not_change_tied_weights():
    embedding = nn.Embedding(7, 5)
    head = nn.Linear(5, 7, bias=False)
    head.weight = embedding.weight
    layer = LoRALinear(head, r=2, alpha=4)
    nn.init.normal_(layer.lora_B)
    before = embedding.weight.clone()
    layer.merge()
    assert torch.equal(embedding.weight, before)
    layer.unmerge()
    assert layer.weight.data_ptr() == embedding.weight.data_ptr()


def test_merging_twice_and_unmerging_unmerged_are_errors():
    layer = random_layer()
    with pytest.raises(RuntimeError, match="not merged"):
        layer.unmerge()
    layer.merge()
    with pytest.raises(RuntimeError, match="already merged"):
        layer.merge()


def test_dropout_acts_on_the_correction_in_training_only():
    layer = golden_layer(dropout=0.5)
    x = torch.tensor([[3.0, 1.0]]).expand(200, 2)
    torch.manual_seed(0)
    # Each input survives with probability 1/2 and is then doubled: Ax is one of 0, 6, -4, 2.
    rows = {tuple(row) for row in layer(x).tolist()}
    assert rows == {(6 + h, 12 + 1.5 * h) for h in (0.0, 6.0, -4.0, 2.0)}
    assert torch.equal(layer.eval()(x)[0], torch.tensor([7.0, 13.5]))


def test_has_the_attributes_of_a_linear():
    base = nn.Linear(5, 3, bias=False).eval()
    layer = LoRALinear(base, r=2, alpha=4)
    assert (layer.in_features, layer.out_features, layer.bias) == (5, 3, None)
    assert layer.weight is base.weight
    assert not layer.training
    assert "r=2" in repr(layer)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"r": 0, "alpha": 1}, "r must be at least 1, got 0"),
        ({"r": 1, "alpha": 0}, "alpha must be a positive number, got 0"),
        ({"r": 1, "alpha": float("nan")}, "alpha must be a positive number, got nan"),
        ({"r": 1, "alpha": 1, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_arguments_do_not_change_the_base(kwargs, message):
    base = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        LoRALinear(base, **kwargs)
    assert base.weight.requires_grad
