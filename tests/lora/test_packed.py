"""Packed weights: the same products, made again when the weight changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALinear, apply_lora, pack_weights
from lora.packed import PackedWeight, can_pack
from lora.product import FEW_ROWS, add_correction


def needs_packing(dtype):
    packs = can_pack(torch.zeros(2, 2, dtype=dtype))
    name = str(dtype).removeprefix("torch.")
    reason = f"needs a CPU and a torch whose oneDNN has {name}"
    return pytest.param(dtype, marks=pytest.mark.skipif(not packs, reason=reason), id=name)


FLOAT32, BFLOAT16 = map(needs_packing, (torch.float32, torch.bfloat16))


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed_weight(packed):
    return packed._packed


@pytest.mark.parametrize("rows", [1, 3, 16, 65, 300])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_products_are_the_same(rows, has_bias, dtype):
    x, weight = random(rows, 96, dtype=dtype), random(40, 96, dtype=dtype, seed=1)
    bias = random(40, dtype=dtype, seed=2) if has_bias else None
    packed = PackedWeight()
    with torch.no_grad():
        product, plain = packed.product(x, weight, bias), F.linear(x, weight, bias)
    assert packed_weight(packed).is_mkldnn
    if dtype == torch.bfloat16:
        assert torch.equal(product, plain)
    else:
        exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert (product - exact).abs().max() < 1e-6 * exact.abs().max()


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_a_weight_that_changes_is_packed_again(dtype):
    def is_product_of(weight):
        with torch.no_grad():
            found = packed.product(x, weight, None)
        rounding = 1e-5 if dtype == torch.float32 else 0
        return torch.allclose(found, F.linear(x, weight), rtol=rounding, atol=rounding)

    x, weight = random(2, 32, dtype=dtype), random(8, 32, dtype=dtype, seed=1)
    packed = PackedWeight()
    assert is_product_of(weight)
    first = packed_weight(packed)
    assert is_product_of(weight)
    assert packed_weight(packed) is first
    weight.mul_(2)  # in place
    assert is_product_of(weight)
    weight.data = random(8, 32, dtype=dtype, seed=3)  # as `module.to()` does
    assert is_product_of(weight)
    assert is_product_of(weight + 1)


def test_other_dtypes_are_multiplied_as_they_are():
    x, weight = random(2, 32, dtype=torch.float64), random(8, 32, dtype=torch.float64, seed=1)
    packed = PackedWeight()
    assert torch.equal(packed.product(x, weight, None), F.linear(x, weight))
    assert packed_weight(packed) is None


def test_copies_are_empty():
    packed = PackedWeight()
    with torch.no_grad():
        packed.product(random(2, 32), random(8, 32, seed=1), None)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert packed_weight(copied) is None


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def layer(request):
    torch.manual_seed(0)
    base = nn.Linear(48, 24, dtype=request.param)
    model = nn.Sequential(base)
    apply_lora(model, r=4, alpha=8, generator=torch.Generator().manual_seed(0))
    nn.init.normal_(model[0].lora_B, std=0.1)
    pack_weights(model)
    return model[0]


@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS, FEW_ROWS + 1, 200])
def test_a_layer_without_gradients_computes_what_it_computes_with_them(layer, rows):
    dtype = layer.weight.dtype
    x = random(rows, 48, dtype=dtype)
    with torch.no_grad():
        y = layer(x)
    wide = copy.deepcopy(layer).double()
    exact = wide(x.double())
    assert y.dtype == dtype
    rounding = (1e-6 if dtype == torch.float32 else 2**-8) * exact.abs().max()
    assert (y - exact).abs().max() < 1.5 * rounding
    assert (y - layer(x)).abs().max() < 2 * rounding
    without = exact - F.linear(x.double(), wide.weight, wide.bias)
    assert without.abs().max() > 20 * rounding  # the correction counts


def test_merging_changes_what_is_multiplied(layer):
    x = random(3, 48, dtype=layer.weight.dtype)
    with torch.no_grad():
        before = layer(x)
        layer.merge()
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        layer.unmerge()
        assert torch.equal(layer(x), before)
        layer.enabled = False
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def scale(layer, name):
    getattr(layer, name).mul_(1.5)


def scale_data(layer, name):
    getattr(layer, name).data.mul_(1.5)


def fused_update(layer, name):
    parameter = getattr(layer, name)
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=0.1, fused=True).step()


@pytest.mark.parametrize("change", [scale, scale_data, fused_update])
@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
def test_what_is_multiplied_follows_every_update(layer, name, change):
    dtype = layer.weight.dtype
    x = random(3, 48, dtype=dtype)

    def product():
        with torch.no_grad():
            return layer(x).double()

    before = product()
    with torch.no_grad():
        change(layer, name)
    exact = copy.deepcopy(layer).double()(x.double())
    rounding = (1e-6 if dtype == torch.float32 else 2**-7) * exact.abs().max()
    assert (product() - exact).abs().max() < rounding
    assert (before - exact).abs().max() > 5 * rounding


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
    dtype = layer.weight.dtype
    x = random(3, 48, dtype=dtype)
    plain = LoRALinear(nn.Linear(48, 24, dtype=dtype), 4, 8)
    plain.load_state_dict(layer.state_dict())
    assert plain.packed is None
    rounding = 1e-5 if dtype == torch.float32 else 0
    with torch.no_grad():
        torch.testing.assert_close(plain(x), layer(x), rtol=rounding, atol=rounding)
