"""Packed weights: the same products to the last bit, made again when the weight changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALinear, apply_lora, pack_weights
from lora.packed import PackedWeight, can_pack
from lora.product import FEW_ROWS, add_correction

CAN_PACK = can_pack(torch.zeros(2, 2, dtype=torch.bfloat16))
NEEDS_PACKING = pytest.mark.skipif(not CAN_PACK, reason="needs a CPU with bfloat16 in oneDNN")


def random(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed_weight(packed):
    return packed._packed


@NEEDS_PACKING
@pytest.mark.parametrize("rows", [1, 3, 16, 65, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_are_the_same_to_the_last_bit(rows, has_bias):
    x, weight = random(rows, 96), random(40, 96, seed=1)
    bias = random(40, seed=2) if has_bias else None
    packed = PackedWeight()
    with torch.no_grad():
        assert torch.equal(packed.product(x, weight, bias), F.linear(x, weight, bias))
    assert packed_weight(packed).is_mkldnn


@NEEDS_PACKING
def test_a_weight_that_changes_is_packed_again():
    x, weight = random(2, 32), random(8, 32, seed=1)
    packed = PackedWeight()
    with torch.no_grad():
        packed.product(x, weight, None)
        first = packed_weight(packed)
        packed.product(x, weight, None)
        assert packed_weight(packed) is first
        weight.mul_(2)  # in place
        assert torch.equal(packed.product(x, weight, None), F.linear(x, weight))
        weight.data = random(8, 32, seed=3)  # as `module.to()` does
        assert torch.equal(packed.product(x, weight, None), F.linear(x, weight))
        other = weight + 1
        assert torch.equal(packed.product(x, other, None), F.linear(x, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_dtypes_are_multiplied_as_they_are(dtype):
    x, weight = random(2, 32, dtype=dtype), random(8, 32, dtype=dtype, seed=1)
    packed = PackedWeight()
    assert torch.equal(packed.product(x, weight, None), F.linear(x, weight))
    assert packed_weight(packed) is None


def test_copies_are_empty():
    packed = PackedWeight()
    with torch.no_grad():
        packed.product(random(2, 32), random(8, 32, seed=1), None)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert packed_weight(copied) is None


@pytest.fixture
def layer():
    torch.manual_seed(0)
    base = nn.Linear(48, 24, dtype=torch.bfloat16)
    model = nn.Sequential(base)
    apply_lora(model, r=4, alpha=8, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model[0].lora_B, std=0.1)
    pack_weights(model)
    return model[0]


@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS, FEW_ROWS + 1, 200])
def test_a_layer_without_gradients_computes_what_it_computes_with_them(layer, rows):
    x = random(rows, 48)
    with torch.no_grad():
        y = layer(x)
    wide = copy.deepcopy(layer).double()
    exact = wide(x.double())
    assert y.dtype == torch.bfloat16
    rounding = 2**-8 * exact.abs().max()
    assert (y - exact).abs().max() < 1.5 * rounding
    assert (y - layer(x)).abs().max() < 2 * rounding
    without = exact - F.linear(x.double(), wide.weight, wide.bias)
    assert without.abs().max() > 20 * rounding  # the correction counts


def test_merging_changes_what_is_multiplied(layer):
    x = random(3, 48)
    with torch.no_grad():
        before = layer(x)
        layer.merge()
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.unmerge()
        assert torch.equal(layer(x), before)
        layer.enabled = False
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_correction(rows, dtype):
    x, y = random(rows, 12, dtype=dtype), random(rows, 7, dtype=dtype, seed=1)
    a, b = random(3, 12, dtype=torch.float32, seed=2), random(7, 3, dtype=torch.float32, seed=3)
    expected = y.double() + 0.5 * (x.double() @ a.double().T) @ b.double().T
    found = add_correction(y.clone(), x, a, b, 0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_is_not_packed_computes_the_same(layer):
    x = random(3, 48)
    plain = LoRALinear(nn.Linear(48, 24, dtype=torch.bfloat16), 4, 8)
    plain.load_state_dict(layer.state_dict())
    assert plain.packed is None
    with torch.no_grad():
        assert torch.equal(plain(x), layer(x))
