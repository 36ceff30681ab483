"""Quantised layers against plain ones that hold the dequantised matrix."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora import (
    LoRALinear,
    adapter_state,
    apply_lora,
    disabled_adapters,
    load_adapter,
    lora_modules,
    merge,
    merged_state,
    quantize_linears,
    save_adapter,
    unmerge,
    unreached,
)
from lora.quantized import LoRAQuantizedLinear, QuantizedLinear, QuantizedWeight
from tests.support.models import make_model as untied_model

pytest.importorskip("bitsandbytes", reason="needs the extra 'quantized'")

BITS = (8, 4)
SHAPES = ((64, 128), (48, 96), (32, 6))  # rows of whole blocks; blocks that cross rows
NF4 = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105004, 0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1]
"""QLoRA, arXiv 2305.14314, appendix E."""


def linear(shape=SHAPES[1], dtype=torch.float32, seed=0):
    n_out, n_in = shape
    torch.manual_seed(seed)
    return nn.Linear(n_in, n_out, dtype=dtype)


def plain(layer):
    """A linear layer with the dequantised matrix as its weight."""
    twin = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    twin.weight, twin.bias = nn.Parameter(layer.weight.clone()), layer.bias
    return twin.requires_grad_(False)


def pair(shape, dtype, bits, seed=3):
    """A LoRA layer on a quantised base, and one with the same A and B on the plain base."""
    base = QuantizedLinear(linear(shape, dtype), bits)
    layers = LoRAQuantizedLinear(base, r=2, alpha=4), LoRALinear(plain(base), r=2, alpha=4)
    for layer in layers:
        torch.manual_seed(seed)
        nn.init.normal_(layer.lora_A, std=0.1)
        nn.init.normal_(layer.lora_B, std=0.1)
    return layers


def gradients(layer, dtype, forward=None):
    x = torch.randn(3, 5, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    x.requires_grad_()
    y = (forward or layer)(x)
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return [y, *torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), up.to(y.dtype))]


def formula(layer):
    """The layer's docstring, differentiated by torch alone, with the dequantised matrix as W."""

    def forward(x):
        a, b = layer.lora_A.to(x.dtype), layer.lora_B.to(x.dtype)
        return F.linear(x, layer.weight, layer.bias) + layer.scaling * (x @ a.t()) @ b.t()

    return forward


def distance(one, other):
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_codes_of_4_bits_are_nf4(shape):
    codes, size = torch.tensor(NF4), shape[0] * shape[1]
    index = torch.randint(16, (size // 64, 64), generator=torch.Generator().manual_seed(0))
    index[:, 0] = 15  # so that the largest absolute value of a block is its scale
    scales = 2.0 ** (torch.arange(size // 64) % 7 - 3)
    weight = (codes[index] * scales[:, None]).view(shape)
    got = QuantizedWeight(weight, 4).dequantize()
    torch.testing.assert_close(got, weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_codes_of_8_bits_are_evenly_spaced(shape):
    size = shape[0] * shape[1]
    index = torch.randint(-127, 128, (size // 64, 64), generator=torch.Generator().manual_seed(0))
    index[:, 0] = -127
    scales = 2.0 ** (torch.arange(size // 64) % 7 - 3)
    weight = (index / 127 * scales[:, None]).view(shape)
    got = QuantizedWeight(weight, 8).dequantize()
    torch.testing.assert_close(got, weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "half_gap"), [(8, 1 / 254), (4, (1 - 0.6961928) / 2)])
def test_the_nearest_code_is_taken(bits, half_gap, dtype):
    weight = linear(dtype=dtype).weight.detach()
    quantized = QuantizedWeight(weight, bits)
    assert quantized.dequantize().dtype == dtype
    blocks = weight.float().view(-1, 64)
    error = (quantized.dequantize(torch.float32).view(-1, 64) - blocks).abs().amax(1)
    assert (error <= 1.01 * half_gap * blocks.abs().amax(1)).all()
    assert quantized.packed.numel() == weight.numel() * bits / 8
    assert not (quantized.dequantize(torch.float32) == weight.float()).all()


def test_a_block_of_zeros():
    for bits in BITS:
        assert not QuantizedWeight(torch.zeros(2, 64), bits).dequantize().any()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
# In bfloat16, W is the same matrix in both; torch rounds before it adds, `LoRALinear` afterwards.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_values_and_gradients_are_those_of_the_dequantised_matrix(shape, dtype, bound, bits):
    ours, plain = pair(shape, dtype, bits)
    results, twin = gradients(ours, dtype), gradients(plain, dtype)
    assert all(map(torch.equal, results, twin))  # the same products of the same numbers
    for got, expected in zip(results, gradients(ours, dtype, formula(ours)), strict=True):
        assert distance(got, expected) < bound
    original = LoRALinear(linear(shape, dtype), r=2, alpha=4)
    original.lora_A, original.lora_B = ours.lora_A, ours.lora_B
    for got, other in zip(results[:2], gradients(original, dtype), strict=False):
        assert distance(got, other) > 1e-3  # the numbers are not those of the plain weights


@pytest.mark.parametrize("bits", BITS)
def test_gradients_in_float64(bits):
    layer, _ = pair(SHAPES[2], torch.float64, bits)
    for parameter in (layer.lora_A, layer.lora_B):
        parameter.data = parameter.data.double()
    x = torch.randn(4, layer.in_features, dtype=torch.float64, requires_grad=True)
    parameters = (x, layer.lora_A, layer.lora_B)
    assert torch.autograd.gradcheck(lambda x, a, b: layer(x), parameters)
    assert torch.autograd.gradcheck(QuantizedLinear(linear(SHAPES[2]).double(), bits), (x,))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_matrix_is_not_kept_for_the_backward_pass(bits, enabled):
    layer, kept = pair((64, 128), torch.float32, bits)[0], [0]
    layer.enabled = enabled
    x = torch.randn(3, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, id):
        assert layer(x).requires_grad
    assert len(kept) > 1 or not enabled
    assert max(kept) < 64 * 128 / 2


@pytest.mark.parametrize("bits", BITS)
def test_a_change_of_dtype_does_not_round_the_scales(bits):
    weight = QuantizedWeight(linear().weight, bits)
    before = weight.dequantize()
    for dtype in (torch.bfloat16, torch.float64, torch.float16, torch.float32):
        assert weight.to(dtype).dtype == dtype
        assert torch.equal(weight.dequantize(), before.to(dtype))


@pytest.mark.parametrize("bits", BITS)
def test_copies_and_state_dicts(bits):
    layer = QuantizedLinear(linear(), bits)
    copied, other = copy.deepcopy(layer), QuantizedLinear(linear(seed=1), bits)
    assert torch.equal(copied.weight, layer.weight)
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other(torch.ones(2, 96)), layer(torch.ones(2, 96)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", BITS)
def test_merge_disable_and_unmerge(bits, dtype):
    layer, twin = pair(SHAPES[1], dtype, bits)
    x = torch.randn(4, layer.in_features).to(dtype)
    plain, base = layer(x), F.linear(x, layer.base_weight, layer.bias)
    assert torch.equal(layer.merged_weight(), twin.merged_weight())
    assert not layer.merged
    layer.merge()
    assert layer.merged
    assert torch.equal(layer.weight, twin.merged_weight())
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer.merged_weight(), twin.merged_weight())  # not merged twice
    with pytest.raises(RuntimeError, match="already merged"):
        layer.merge()
    layer.enabled = False
    assert torch.equal(layer(x), base)
    layer.unmerge()
    assert torch.equal(layer(x), base)
    layer.enabled = True
    assert torch.equal(layer(x), plain)
    with pytest.raises(RuntimeError, match="not merged"):
        layer.unmerge()


@pytest.mark.parametrize("shape", [(5, 7), (0, 64), (64,), (2, 64, 2)])
def test_a_shape_that_cannot_be_quantised(shape):
    with pytest.raises(ValueError, match="must be a matrix of a multiple of 64 numbers, got"):
        QuantizedWeight(torch.zeros(shape), 4)


def test_other_bits():
    with pytest.raises(ValueError, match="bits must be 8 or 4, got 3"):
        QuantizedWeight(torch.zeros(2, 64), 3)


def test_a_plain_base_is_refused():
    with pytest.raises(TypeError, match="base must be a QuantizedLinear, got Linear"):
        LoRAQuantizedLinear(linear(), r=2, alpha=4)


# Whole models.


@pytest.fixture(params=BITS)
def quantized(make_model, request):
    """A function that makes a quantised model with plain twin, both with the same adapter."""

    def make(randomize, dtype=torch.float32, **options):
        model = make_model(dtype)
        quantize_linears(model, request.param)
        twin = make_model(dtype)
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLinear):
                twin.get_submodule(name).weight = nn.Parameter(layer.weight)
        for each in (model, twin):
            apply_lora(each, r=2, generator=torch.Generator().manual_seed(0), **options)
            randomize(each)
        return model, twin

    return make


def test_every_linear_layer_but_the_head(make_model):
    plain, model = make_model(), make_model()
    linears = [n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert quantize_linears(model, 4) == len(linears)
    assert [n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)] == linears
    assert type(model.lm_head) is nn.Linear
    assert not any(p.requires_grad for p in model.parameters())
    assert apply_lora(model, ["q_proj"], r=2) == sum("q_proj" in name for name in linears)
    assert unreached(model) == ([], 0)


def test_a_head_that_is_not_tied_stays_plain():
    model = untied_model("llama")
    assert quantize_linears(model, 4) == 14
    assert type(model.lm_head) is nn.Linear


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_models_gradients(quantized, randomize, input_ids, targets, dtype, bound):
    results = []
    for model in quantized(randomize, dtype, target_modules=targets):
        embedded = model.get_input_embeddings()(input_ids).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        logits.float().log_softmax(-1)[..., ::5].sum().backward()
        layers = lora_modules(model).values()
        grads = [p.grad.flatten() for m in layers for p in (m.lora_A, m.lora_B)]
        results.append((logits, embedded.grad, torch.cat(grads)))
    for got, expected in zip(*results, strict=True):
        assert distance(got, expected) < bound


def test_disabled_and_merged(quantized, randomize, input_ids):
    model, twin = quantized(randomize)
    with torch.no_grad(), disabled_adapters(model), disabled_adapters(twin):
        assert torch.equal(model(input_ids).logits, twin(input_ids).logits)
    expected = model(input_ids).logits
    merge(model)
    merge(twin)
    assert torch.equal(model(input_ids).logits, twin(input_ids).logits)
    assert distance(model(input_ids).logits, expected) < 1e-3  # float32, large corrections
    unmerge(model)
    assert torch.equal(model(input_ids).logits, expected)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_the_merged_state_is_that_of_a_plain_model(
    make_model, quantized, randomize, input_ids, targets
):
    model, twin = quantized(randomize, torch.bfloat16, target_modules=targets)
    state, plain = dict(merged_state(model)), make_model(torch.bfloat16)
    assert state.keys() == plain.state_dict().keys()
    expected = dict(merged_state(twin))
    for name, tensor in state.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name
    plain.load_state_dict(state)
    merge(twin)
    assert torch.equal(plain(input_ids).logits, twin(input_ids).logits)


def test_an_adapter_is_saved_and_loaded(make_model, quantized, randomize, input_ids, tmp_path):
    model, twin = quantized(randomize)
    for one, folder in ((model, "quantized"), (twin, "plain")):
        save_adapter(one, tmp_path / folder, base_model_name_or_path="base")
    names = ("adapter_config.json", "adapter_model.safetensors")
    for name in names:
        one, other = (tmp_path / folder / name for folder in ("quantized", "plain"))
        assert one.read_bytes() == other.read_bytes()
    again = make_model()
    quantize_linears(again, next(iter(lora_modules(model).values())).quantized.bits)
    assert load_adapter(again, tmp_path / "plain") == len(lora_modules(model))
    assert torch.equal(again(input_ids).logits, model(input_ids).logits)
    assert adapter_state(again).keys() == adapter_state(twin).keys()


class Strange(nn.Module):
    """Has a layer of each kind that cannot be quantised."""

    def __init__(self):
        super().__init__()
        self.embedding, self.tied = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.tied.weight = self.embedding.weight
        self.odd, self.read, self.called = nn.Linear(8, 5), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids):
        x = self.called(self.embedding(ids))
        return self.tied(x) + self.odd(x).sum() + x.sum() * self.read.weight.sum()


def test_layers_that_cannot_be_quantised_are_named(recwarn):
    model, ids = Strange(), torch.tensor([[1, 2]])
    assert quantize_linears(model, 4, probe=lambda: model(ids)) == 1
    assert type(model.called) is QuantizedLinear
    [warning] = [str(w.message) for w in recwarn]
    assert warning == (
        "layers that are not quantised: tied (its weight is another layer's as well); odd (its "
        "weight has no multiple of 64 numbers); read (the model reads the weight without calling "
        "the layer)"
    )


def test_a_model_of_which_nothing_can_be_quantised():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"cannot be quantised: \* \(its weight has no multiple"):
        quantize_linears(model, 4)
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="cannot be quantised: it has no linear layer but"):
        quantize_linears(nn.Sequential(nn.ReLU()), 4)


def test_a_model_whose_weights_are_elsewhere():
    model = nn.Sequential(nn.Linear(8, 8))
    model.experts = nn.Parameter(torch.zeros(4, 8, 8))
    expected = "cannot be quantised: 78% of them are outside linear layers, in experts$"
    with pytest.raises(ValueError, match=expected):
        quantize_linears(model, 4)
    assert type(model[0]) is nn.Linear


def test_quantised_weights_count_among_those_that_an_adapter_reaches():
    model = nn.Sequential(nn.Linear(64, 64))
    model.small = nn.Parameter(torch.zeros(4, 8))  # 0.8 % of all
    quantize_linears(model, 4)
    assert unreached(model) == ([], 0)
    apply_lora(model, r=1)
    assert unreached(model) == ([], 0)


def test_without_the_library(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match="need bitsandbytes: install the extra 'quantized'"):
        quantize_linears(llama, 4)


@pytest.mark.parametrize("bits", BITS)
def test_linear_layers_are_moved_before_they_are_quantised(llama, bits):
    assert quantize_linears(llama, bits, device="meta") == 14
    for layer in (m for m in llama.modules() if isinstance(m, QuantizedLinear)):
        assert {b.device.type for b in layer.buffers()} == {"meta"}
        assert layer.weight.device.type == "meta"
    assert {p.device.type for p in llama.parameters()} == {"cpu"}


@pytest.mark.parametrize("bits", BITS)
def test_every_tensor_is_made_on_the_weights_device(bits):
    base = QuantizedLinear(nn.Linear(96, 48, device="meta", dtype=torch.bfloat16), bits)
    layer = LoRAQuantizedLinear(base, r=2, alpha=4)
    x = torch.ones(2, 3, 96, device="meta", dtype=torch.bfloat16, requires_grad=True)
    for enabled in (False, True):
        layer.enabled = enabled
        y = layer(x)
        assert (y.device.type, y.dtype, y.shape) == ("meta", torch.bfloat16, (2, 3, 48))
        y.sum().backward()
    for tensor in (x.grad, layer.lora_A.grad, layer.lora_B.grad, layer.merged_weight()):
        assert tensor.device.type == "meta"
