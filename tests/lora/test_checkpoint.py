"""Save and load adapters: round trips, and files that must be rejected."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora import (
    adapter_state,
    apply_lora,
    load_adapter,
    load_adapter_state,
    lora_modules,
    lora_parameters,
    merge,
    save_adapter,
)

Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def folder(llama, randomize, tmp_path):
    """A saved adapter on both q_proj of the llama, r = 2, alpha = 8."""
    apply_lora(llama, ["q_proj"], r=2, alpha=8)
    randomize(llama)
    save_adapter(llama, tmp_path / "adapter", base_model_name_or_path="some/base")
    return tmp_path / "adapter"


@pytest.fixture
def plain(llama):
    """The same llama without an adapter."""
    fresh = type(llama)(llama.config)
    fresh.load_state_dict({k: v for k, v in llama.state_dict().items() if "lora_" not in k})
    return fresh


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, edit):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def assert_rejected(model, folder, message):
    """Check that loading fails with this message and does not change the model."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        load_adapter(model, folder)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert [p.requires_grad for p in model.parameters()] == trainable


def test_state_names_and_shapes(llama, folder):
    state = adapter_state(llama)
    assert {key: list(tensor.shape) for key, tensor in state.items()} == {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{x}.weight": shape
        for i in (0, 1)
        for x, shape in (("A", [2, 16]), ("B", [16, 2]))
    }


def test_state_is_a_float32_snapshot(make_model, randomize):
    model = make_model()
    apply_lora(model, r=2)
    randomize(model)
    model.to(torch.bfloat16)  # A and B as well
    state = adapter_state(model)
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert not any(t.requires_grad for t in state.values())
    kept = {key: tensor.clone() for key, tensor in state.items()}
    randomize(model, seed=9)
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    load_adapter_state(model, state)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in adapter_state(model).items())


def test_the_files(folder):
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 8, 0.0)
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["bias"], config["inference_mode"]) == ("none", True)
    assert config["base_model_name_or_path"] == "some/base"


@pytest.mark.parametrize(
    ("targets", "saved"),
    [
        (["q_proj", "in_proj"], ["in_proj", "q_proj"]),
        (["conv.out_proj"], ["conv.out_proj"]),
        (["layers.0.conv.in_proj"], ["0.conv.in_proj"]),
        ("all-linear", ["in_proj", "k_proj", "out_proj", "q_proj", "v_proj", "w1", "w2", "w3"]),
    ],
)
def test_saved_targets_match_exactly_the_adapted_modules(lfm2, tmp_path, targets, saved):
    apply_lora(lfm2, targets, r=2)
    save_adapter(lfm2, tmp_path, base_model_name_or_path="x")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == saved


@pytest.mark.parametrize("targets", ["all-linear", ["lm_head"]])
def test_round_trip_onto_a_plain_model(make_model, input_ids, randomize, tmp_path, targets):
    model, other = make_model(), make_model()
    count = apply_lora(model, targets, r=3, alpha=5, dropout=0.25)
    randomize(model)
    save_adapter(model, tmp_path, base_model_name_or_path="x")
    assert load_adapter(other, tmp_path) == count
    assert torch.equal(model(input_ids=input_ids).logits, other(input_ids=input_ids).logits)
    assert {m.dropout for m in lora_modules(other).values()} == {0.25}
    trained = {name for name, p in other.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{x}" for name in lora_modules(model) for x in "AB"}


def test_round_trip_onto_a_model_with_lora(llama, folder, randomize):
    before = adapter_state(llama)
    randomize(llama, seed=9)
    assert load_adapter(llama, folder, trainable=False) == 2
    assert all(torch.equal(tensor, before[key]) for key, tensor in adapter_state(llama).items())
    assert not any(p.requires_grad for p in lora_parameters(llama))


def test_saving_while_merged_writes_the_same_adapter(llama, folder, tmp_path):
    merge(llama)
    save_adapter(llama, tmp_path / "merged", base_model_name_or_path="some/base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()


def test_loading_onto_a_merged_model_is_an_error(llama, folder):
    state = adapter_state(llama)
    merge(llama)
    with pytest.raises(RuntimeError, match="is merged"):
        load_adapter(llama, folder)
    with pytest.raises(RuntimeError, match="is merged"):
        load_adapter_state(llama, state)


def test_saving_over_an_adapter_replaces_it(llama, plain, folder, randomize):
    randomize(llama, seed=9)
    save_adapter(llama, folder, base_model_name_or_path="some/base")
    load_adapter(plain, folder)
    expected = adapter_state(llama)
    assert all(torch.equal(t, expected[key]) for key, t in adapter_state(plain).items())


@pytest.mark.parametrize(
    "targets",
    [r".*\.self_attn\.q_proj", ["q_proj"], ["q_proj", "not_there"], ["self_attn.q_proj"]],
)
def test_forms_of_target_modules(plain, folder, targets):
    edit_config(folder, target_modules=targets)
    assert load_adapter(plain, folder) == 2


def test_rslora_scales_by_the_square_root_of_r(plain, folder):
    edit_config(folder, use_rslora=True)
    load_adapter(plain, folder)
    # 8 / sqrt(2), not 8 / 2
    for module in lora_modules(plain).values():
        assert module.scaling == pytest.approx(5.656854249492381, rel=1e-12)


@pytest.mark.parametrize("onto", ["plain", "llama"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"), rf"{Q_PROJ}\.lora_B\.weight is missing"),
        (
            lambda t: t.update({"lm_head.bias": torch.zeros(1)}),
            r"lm_head\.bias is unexpected",
        ),
        (
            lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.zeros(2, 15)}),
            rf"{Q_PROJ}\.lora_A\.weight must be \[2, 16\], got \[2, 15\]",
        ),
        (lambda t: t.clear(), r"is missing.*is missing.*is missing.*is missing$"),
    ],
)
def test_tensors_that_do_not_fit(request, folder, onto, edit, message):
    model = request.getfixturevalue(onto)
    edit_tensors(folder, edit)
    assert_rejected(model, folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', got 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*pissa"),
        ({"a_future_feature": 1}, "a_future_feature"),
        ({"r": "2"}, "r must be a positive integer, got '2'"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"target_modules": None}, "target_modules must be a list or a string, got None"),
        ({"target_modules": "q_proj"}, "'q_proj' match no nn.Linear"),  # a pattern, not a name
        ({"target_modules": ["not_there"]}, r"\['not_there'\] match no nn.Linear"),
        ({"target_modules": ["k_proj"]}, "k_proj.lora_A.weight is missing"),
        ({"r": 4}, r"lora_A.weight must be \[4, 16\], got \[2, 16\]"),
        ({"lora_dropout": 1.0}, "dropout must be in"),
    ],
)
def test_configurations_that_are_rejected(plain, folder, changes, message):
    edit_config(folder, **changes)
    assert_rejected(plain, folder, message)


@pytest.mark.parametrize("changes", [{"r": 4}, {"lora_alpha": 16}, {"use_rslora": True}])
def test_a_different_r_or_scaling_is_rejected(llama, folder, changes):
    edit_config(folder, **changes)
    assert_rejected(llama, folder, "has r=2 and alpha=8, the adapter in .* has r=")


def test_broken_files(plain, folder):
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert_rejected(plain, folder, "is not a safetensors file")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        load_adapter(plain, folder)
    config.write_text("{")
    assert_rejected(plain, folder, "is not JSON")
    config.write_text("[]")
    assert_rejected(plain, folder, "must hold an object, got list")
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        load_adapter(plain, folder)


def test_saving_without_lora_or_with_mixed_settings_is_an_error(plain, llama, tmp_path):
    with pytest.raises(ValueError, match="no LoRA layers"):
        save_adapter(plain, tmp_path / "a", base_model_name_or_path="x")
    apply_lora(llama, ["q_proj"], r=2)
    next(iter(lora_modules(llama).values())).alpha = 3
    with pytest.raises(ValueError, match="must share"):
        save_adapter(llama, tmp_path / "a", base_model_name_or_path="x")
    assert not (tmp_path / "a").exists()


def test_targets_that_no_list_can_express_are_an_error(tmp_path):
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2)})
    apply_lora(model, ["proj"], r=1)
    model["sub"] = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="no list of names matches proj"):
        save_adapter(model, tmp_path, base_model_name_or_path="x")
