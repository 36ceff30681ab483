"""LoRA layers in whole models: targets, gradients, disabling, merging."""

import pytest
import torch
from torch import nn

from lora import (
    LoRALinear,
    apply_lora,
    disabled_adapters,
    lora_modules,
    lora_parameters,
    merge,
    merged_state,
    unmerge,
)

LLAMA_LAYER = 7  # q k v o, gate up down
LFM2_ATTENTION, LFM2_CONV = 7, 5  # (q k v out | in out) + w1 w2 w3


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 2 * LLAMA_LAYER),
        (["q_proj"], 2),
        (["q_proj", "self_attn.v_proj"], 4),
        (["layers.1.self_attn.q_proj"], 1),
        (["q_proj", "self_attn.q_proj"], 2),  # two targets, the same modules
        (["model.layers.0.mlp.up_proj", "lm_head"], 2),
    ],
)
def test_counts_on_llama(llama, targets, count):
    assert apply_lora(llama, targets, r=2) == count
    assert len(lora_modules(llama)) == count


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", LFM2_ATTENTION + 2 * LFM2_CONV),
        (["out_proj"], 3),
        (["conv.out_proj"], 2),
        (["self_attn.out_proj"], 1),
        (["w1", "w2", "w3"], 9),
        (["in_proj", "q_proj"], 3),
    ],
)
def test_counts_on_lfm2(lfm2, targets, count):
    assert apply_lora(lfm2, targets, r=2) == count


def test_all_linear_leaves_out_the_output_head(llama):
    apply_lora(llama)
    assert isinstance(llama.lm_head, nn.Linear)


def test_all_linear_without_an_output_head():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert apply_lora(model, r=1) == 2
    assert [type(m) for m in model] == [LoRALinear, nn.ReLU, LoRALinear]


@pytest.mark.parametrize("target", ["_proj", "o_proj", "attn.q_proj", "conv.conv", "layers", ""])
def test_a_target_that_matches_nothing_is_an_error(lfm2, target):
    with pytest.raises(ValueError, match=r"match no nn\.Linear") as caught:
        apply_lora(lfm2, ["q_proj", target], r=2)
    assert str(caught.value) == (
        f"target_modules {[target]} match no nn.Linear; there are: "
        "in_proj, k_proj, lm_head, out_proj, q_proj, v_proj, w1, w2, w3"
    )
    assert not lora_modules(lfm2)
    assert all(p.requires_grad for p in lfm2.parameters())


def test_a_bare_string_and_an_empty_list_are_errors(llama):
    with pytest.raises(ValueError, match="'all-linear' or a list of names, got 'q_proj'"):
        apply_lora(llama, "q_proj")
    with pytest.raises(ValueError, match="at least one module"):
        apply_lora(llama, [])


def test_subclasses_of_linear_are_not_matched():
    # MultiheadAttention reads out_proj.weight and never calls it: LoRA there would do nothing.
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(ValueError, match="there are: none"):
        apply_lora(model, ["out_proj"])
    with pytest.raises(ValueError, match="all-linear"):
        apply_lora(model)


def test_applying_twice_is_an_error(llama):
    apply_lora(llama, ["q_proj"])
    with pytest.raises(ValueError, match="already has LoRA layers"):
        apply_lora(llama, ["v_proj"])


def test_bad_settings_change_nothing(llama):
    with pytest.raises(ValueError, match="r must be at least 1"):
        apply_lora(llama, r=0)
    assert not lora_modules(llama)
    assert all(p.requires_grad for p in llama.parameters())


def test_the_generator_determines_the_initial_values(make_model):
    models = [make_model() for _ in range(2)]
    for model in models:
        apply_lora(model, r=2, generator=torch.Generator().manual_seed(5))
        torch.rand(3)  # the global generator has no effect
    for first, second in zip(*map(lora_parameters, models), strict=True):
        assert torch.equal(first, second)


def test_gradients_reach_a_and_b_only(make_model, input_ids, randomize):
    model = make_model()
    count = apply_lora(model, r=2)
    randomize(model)
    model(input_ids=input_ids).logits.float().square().mean().backward()
    with_grad = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_grad == {f"{n}.lora_{x}" for n in lora_modules(model) for x in "AB"}
    assert with_grad == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(lora_parameters(model)) == 2 * count
    assert all(p.grad.abs().max() > 0 for p in lora_parameters(model))


def test_state_dict_keeps_the_base_names(make_model):
    plain, model = make_model(), make_model()
    apply_lora(model, r=2)
    state = model.state_dict()
    assert set(plain.state_dict()) == {name for name in state if "lora_" not in name}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_initial_and_disabled_adapters_equal_the_base_bitwise(
    make_model, input_ids, randomize, dtype
):
    model = make_model(dtype)
    base = model(input_ids=input_ids).logits
    apply_lora(model, r=2)
    assert torch.equal(model(input_ids=input_ids).logits, base)
    randomize(model)
    adapted = model(input_ids=input_ids).logits
    assert not torch.allclose(adapted, base)
    with disabled_adapters(model):
        assert torch.equal(model(input_ids=input_ids).logits, base)
    assert torch.equal(model(input_ids=input_ids).logits, adapted)
    merge(model)
    with disabled_adapters(model):
        assert torch.equal(model(input_ids=input_ids).logits, base)


def test_disabled_adapters_nests_and_survives_exceptions(llama):
    apply_lora(llama, ["q_proj"])
    first, second = lora_modules(llama).values()
    second.enabled = False
    with disabled_adapters(llama):
        with pytest.raises(KeyError), disabled_adapters(llama):
            raise KeyError
        assert not first.enabled  # the inner context restores "off"
    assert (first.enabled, second.enabled) == (True, False)
    with pytest.raises(KeyError), disabled_adapters(llama):
        raise KeyError
    assert (first.enabled, second.enabled) == (True, False)


def test_merge_equals_adapter_and_unmerge_is_bitwise(make_model, input_ids, randomize):
    model = make_model(torch.float64)
    apply_lora(model, r=2, alpha=6)
    randomize(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = model(input_ids=input_ids).logits
    merge(model)
    assert all(not torch.equal(m.weight, m.base_weight) for m in lora_modules(model).values())
    merged = model(input_ids=input_ids).logits
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-12)
    unmerge(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(input_ids=input_ids).logits, adapted)


def test_merged_weights_make_a_plain_model(make_model, input_ids, randomize):
    model, plain = make_model(torch.float64), make_model(torch.float64)
    apply_lora(model, r=2)
    randomize(model)
    merge(model)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "lora_" not in k})
    assert torch.equal(plain(input_ids=input_ids).logits, model(input_ids=input_ids).logits)


def test_merged_state_loads_into_a_plain_model_and_changes_nothing(
    make_model, input_ids, randomize
):
    model, plain = make_model(torch.float64), make_model(torch.float64)
    names = list(plain.state_dict())
    apply_lora(model, r=2, alpha=6)
    randomize(model)
    adapted = model(input_ids=input_ids).logits
    state = dict(merged_state(model))
    assert list(state) == names
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(input_ids=input_ids).logits, adapted, rtol=0, atol=1e-12)
    assert torch.equal(model(input_ids=input_ids).logits, adapted)
    merge(model)
    assert all(torch.equal(state[name], tensor) for name, tensor in merged_state(model))


def test_a_tied_weight_cannot_be_merged_into_a_state(make_model, randomize):
    model = make_model()
    apply_lora(model, ["lm_head", "q_proj"], r=2)
    randomize(model)
    names = r"model\.embed_tokens\.weight and lm_head\.weight are one tied weight"
    with pytest.raises(ValueError, match=names):
        dict(merged_state(model))
    merge(model)  # in the model itself the two may differ
    with pytest.raises(ValueError, match=names):
        dict(merged_state(model))
    unmerge(model)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_an_untied_output_head_is_merged(llama, input_ids, randomize):
    llama.lm_head.weight = nn.Parameter(llama.lm_head.weight.detach().clone())
    apply_lora(llama, ["lm_head"], r=2)
    randomize(llama)
    adapted = llama(input_ids=input_ids).logits
    plain = type(llama)(
        llama.config.__class__(**{**llama.config.to_dict(), "tie_word_embeddings": False})
    )
    plain.load_state_dict(dict(merged_state(llama)))
    torch.testing.assert_close(plain(input_ids=input_ids).logits, adapted, rtol=0, atol=1e-5)


def test_two_layers_with_one_weight_cannot_be_merged_into_a_state(randomize):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    apply_lora(model, r=1)
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one tied weight"):
        dict(merged_state(model))


def test_a_layer_under_two_names_is_merged_under_both(randomize):
    block = nn.Sequential(nn.Linear(3, 3))
    model = nn.ModuleDict({"a": block, "b": block})
    assert apply_lora(model, r=1) == 1
    randomize(model)
    state = dict(merged_state(model))
    assert list(state) == ["a.0.weight", "a.0.bias", "b.0.weight", "b.0.bias"]
    assert torch.equal(state["a.0.weight"], state["b.0.weight"])
    assert not torch.equal(state["a.0.weight"], block[0].weight)


def test_merge_twice_and_unmerge_unmerged_change_nothing(llama):
    apply_lora(llama, ["q_proj"], r=2)
    first, second = lora_modules(llama).values()
    with pytest.raises(RuntimeError, match=r"layers\.0\.self_attn\.q_proj is not merged"):
        unmerge(llama)
    second.merge()
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.q_proj is merged"):
        merge(llama)
    assert not first.merged


@pytest.mark.parametrize(
    "function",
    [merge, unmerge, lambda m: disabled_adapters(m).__enter__(), lambda m: dict(merged_state(m))],
)
def test_a_model_without_lora_is_an_error(llama, function):
    with pytest.raises(ValueError, match="no LoRA layers"):
        function(llama)
