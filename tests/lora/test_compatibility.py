"""Layers that cannot have LoRA: names that PEFT reads otherwise, weights read without a call."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora import LoRALinear, apply_lora, load_adapter, lora_modules, save_adapter, unreached
from lora.compatibility import patterns, read_past_forward, unsuitable, write_reasons
from lora.inject import linear_modules

MLP = ("gate_proj", "up_proj", "down_proj")


def names_of(model):
    return {name.rpartition(".")[2] for name in lora_modules(model)}


@pytest.mark.parametrize(
    ("model_type", "left_out", "reason"),
    [
        ("deepseek_v3", set(MLP), "PEFT takes the name for experts of deepseek_v3"),
        ("qwen3_next", set(MLP), "PEFT takes the name for experts of qwen3_next"),
        ("mixtral", set(), ""),  # its experts are w1, w2 and w3
        ("qwen2_moe", set(), ""),  # PEFT converts nothing for it
        ("llama", set(), ""),
    ],
)
def test_expert_names_are_left_out_of_all_linear(llama, model_type, left_out, reason):
    llama.config.model_type = model_type
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = apply_lora(llama, r=2)
    assert names_of(llama) == {"q_proj", "k_proj", "v_proj", "o_proj", *MLP} - left_out
    assert count == len(lora_modules(llama)) == 14 - 2 * len(left_out)
    messages = [str(warning.message) for warning in caught]
    where = ", ".join(f"model.layers.*.mlp.{name}" for name in MLP)
    assert messages == ([f"layers without LoRA: {where} ({reason})"] if left_out else [])


@pytest.mark.parametrize(
    ("model_type", "targets", "message"),
    [
        ("minimax", ["w1", "in_proj"], r"feed_forward\.w1 \(PEFT takes the name for experts"),
        ("mamba2", ["out_proj"], r"conv\.out_proj, .*\(PEFT refuses the name in mamba2\)"),
        ("falcon_h1", ["layers.0.conv.out_proj"], r"layers\.\*\.conv\.out_proj \(PEFT refuses"),
    ],
)
def test_a_named_target_is_refused(lfm2, model_type, targets, message):
    lfm2.config.model_type = model_type
    with pytest.raises(ValueError, match=message) as caught:
        apply_lora(lfm2, targets, r=2)
    assert "\n" not in str(caught.value)
    assert not lora_modules(lfm2)
    assert all(p.requires_grad for p in lfm2.parameters())


def test_nothing_is_left_of_all_linear(llama):
    llama.config.model_type = "afmoe"
    for layer in llama.model.layers:
        layer.self_attn = nn.Identity()
    with pytest.raises(ValueError, match=r"cannot have LoRA: model\.layers\.\*\.mlp\.gate_proj, "):
        apply_lora(llama)


def test_an_adapter_from_a_file_is_refused(llama, tmp_path):
    fresh = type(llama)(llama.config)
    apply_lora(llama, ["q_proj", "up_proj"], r=2)
    save_adapter(llama, tmp_path, base_model_name_or_path="x")
    fresh.config.model_type = "glm4_moe"
    with pytest.raises(ValueError, match=r"cannot be used: model\.layers\.\*\.mlp\.up_proj \(PEFT"):
        load_adapter(fresh, tmp_path)
    assert not lora_modules(fresh)


def test_names_that_transformers_renames():
    layers = {
        f"model.layers.0.mlp.{part}.up_proj": nn.Linear(1, 1) for part in ("a", "shared_experts")
    }
    assert set(unsuitable(layers, "laguna")) == {"model.layers.0.mlp.shared_experts.up_proj"}
    assert not unsuitable(layers, "qwen2_moe")
    assert not unsuitable(layers, "")


class Reads(nn.Module):
    """One layer for each way in which a weight can be used."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        for name in ("called", "read", "both", "neither", "looked_at", "normed", "head"):
            setattr(self, name, nn.Linear(4, 4 if name != "head" else 5, bias=name != "head"))
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        x = self.called(x) + F.linear(x, self.read.weight)
        x = self.both(x) * self.both.weight.detach().mean() + x @ self.both.weight[0].diag()
        x = x.to(self.looked_at.weight.dtype) + self.looked_at(x) * self.looked_at.in_features
        return self.head(x / self.normed.weight.norm())


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_that_are_read_past_their_forward(wrapped):
    torch.manual_seed(0)
    model, ids = Reads(), torch.tensor([[1, 2, 3]])
    layers = dict(linear_modules(model))
    if wrapped:
        for name, layer in layers.items():
            layers[name] = LoRALinear(layer, 2, 4)
            setattr(model, name, layers[name])
    before = model(ids)
    kept = dict(model.named_parameters(remove_duplicate=False))
    requires_grad = {name: p.requires_grad for name, p in kept.items()}
    assert read_past_forward(layers, lambda: model(ids)) == ["read", "both", "normed"]
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in kept.items())
    assert {name: p.requires_grad for name, p in after.items()} == requires_grad
    assert all(p.grad is None for p in after.values())
    assert torch.equal(model(ids), before)


def test_a_probe_that_fails_leaves_the_model_as_it_was():
    model = Reads()
    weight = model.called.weight
    with pytest.raises(IndexError):
        read_past_forward(linear_modules(model), lambda: model(torch.tensor([[99]])))
    assert model.called.weight is weight
    assert "forward" not in vars(model.called)


def test_read_weights_are_left_out_or_refused(tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    model, other = Reads(), Reads()
    with pytest.warns(UserWarning, match=r"without LoRA: read, both, normed \(the model reads the"):
        assert apply_lora(model, r=2, probe=lambda: model(ids)) == 4
    with pytest.raises(ValueError, match=r"cannot have LoRA: both \(the model reads the weight"):
        apply_lora(other, ["both", "called"], r=2, probe=lambda: other(ids))
    assert not lora_modules(other)
    model = Reads()
    apply_lora(model, ["both"], r=2)  # without a probe nothing is known of it
    save_adapter(model, tmp_path, base_model_name_or_path="x")
    with pytest.raises(ValueError, match=r"cannot be used: both \(the model reads the weight"):
        load_adapter(other, tmp_path, probe=lambda: other(ids))
    assert not lora_modules(other)


class Experts(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(sizes))
        self.scale = nn.Parameter(torch.zeros(300))  # not a matrix
        self.conv = nn.Conv1d(8, 8, 4)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("sizes", "names", "count"),
    [((4, 10, 5), ["layers.*.up"], 400), ((1, 2, 2), [], 0)],
)
def test_weights_that_no_adapter_reaches(wrapped, sizes, names, count):
    model = nn.Module()
    model.layers = nn.ModuleList([Experts(sizes) for _ in range(2)])
    model.linear = nn.Linear(20, 20)
    total = sum(p.numel() for p in model.parameters())
    if wrapped:
        model.linear = LoRALinear(model.linear, 1, 1)
        total += 40
    assert unreached(model) == (names, count / total)


def test_names_in_one_line():
    names = ["layers.0.q", "layers.11.q", "blocks.0.experts.3.w1", "fc1", "2.fc1"]
    assert patterns(names) == ["layers.*.q", "blocks.*.experts.*.w1", "fc1", "*.fc1"]
    assert write_reasons({"a.0": "x", "b": "y", "a.1": "x"}) == "a.* (x); b (y)"
