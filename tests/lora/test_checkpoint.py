"""Save and load adapters: round trips, and files that must be rejected."""

import json
import math
import os
import struct

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
        ({"target_parameters": ["experts.up_proj"]}, "target_parameters"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*pissa"),
        ({"a_future_feature": 1}, "a_future_feature"),
        ({"r": "2"}, "r must be a positive integer, got '2'"),
        ({"r": 0}, "r must be a positive integer, got 0"),
        ({"r": True}, "r must be a positive integer, got True"),
        ({"r": 2.0}, r"r must be a positive integer, got 2\.0"),
        ({"r": [2]}, r"r must be a positive integer, got \[2\]"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"lora_alpha": True}, "lora_alpha must be a number, got True"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number, got '8'"),
        ({"lora_alpha": math.nan}, "lora_alpha must be a number, got nan"),
        ({"lora_alpha": math.inf}, "lora_alpha must be a number, got inf"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number, got 1000"),
        ({"lora_alpha": 0}, "lora_alpha must be above 0, got 0"),
        ({"lora_alpha": -8}, "lora_alpha must be above 0, got -8"),
        ({"lora_dropout": None}, r"lora_dropout must be in \[0, 1\), got None"),  # as in PEFT
        ({"lora_dropout": math.nan}, r"lora_dropout must be in \[0, 1\), got nan"),
        ({"lora_dropout": -0.1}, r"lora_dropout must be in \[0, 1\), got -0\.1"),
        ({"lora_dropout": False}, r"lora_dropout must be in \[0, 1\), got False"),
        ({"lora_dropout": "0"}, r"lora_dropout must be in \[0, 1\), got '0'"),
        ({"use_rslora": "false"}, "use_rslora must be true or false, got 'false'"),
        ({"target_modules": None}, "target_modules must be a list or a string, got None"),
        ({"target_modules": ["q_proj", 1]}, r"target_modules must be .*, got \['q_proj', 1\]"),
        ({"target_modules": []}, r"target_modules \[\] match no nn\.Linear"),
        ({"target_modules": ["layers.1"]}, r"got model\.layers\.1: LlamaDecoderLayer"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"got model\.embed_tokens: Embedding"),
        (
            {"target_modules": "("},
            r"adapter_config\.json: target_modules '\(' is not a regular exp",
        ),
        ({"exclude_modules": "*"}, r"exclude_modules '\*' is not a regular expression"),
        ({"exclude_modules": 3}, "exclude_modules must be a list or a string, got 3"),
        ({"exclude_modules": ["q_proj"]}, "match no nn.Linear"),
        (
            {"exclude_modules": ["0.self_attn.q_proj"]},
            r"layers\.0\.self_attn\.q_proj.* is unexpected",
        ),
        ({"layers_to_transform": True}, "layers_to_transform must be a list of integers, got True"),
        ({"layers_to_transform": ["1"]}, "layers_to_transform must be a list of integers, got"),
        (
            {"layers_to_transform": 0, "layers_pattern": "("},
            r"layers_pattern \['\('\] is not a reg",
        ),
        ({"layers_to_transform": [7]}, "match no nn.Linear"),
        ({"layers_pattern": "layers"}, "layers_pattern needs layers_to_transform"),
        (
            {"layers_to_transform": [0], "target_modules": ".*q_proj"},
            "need a list as target_modules",
        ),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "need a list as target_mod"),
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


def test_a_catastrophic_regular_expression_ends_in_one_line(plain, folder, monkeypatch):
    monkeypatch.setattr("lora.targets.PATTERN_SECONDS", 1.0)
    edit_config(folder, target_modules=r"([a-z_.0-9]+)+\$")
    assert_rejected(plain, folder, r"target_modules '.*' takes more than 1 s to match the names")


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


def test_files_that_are_something_else(plain, folder, tmp_path):
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    kept = tmp_path / "blob"
    for path in (config, weights):
        path.rename(kept)
        path.symlink_to("/dev/zero")
        assert_rejected(plain, folder, f"{path.name} is not a regular file")
        path.unlink()
        path.mkdir()
        assert_rejected(plain, folder, f"{path.name} is not a regular file")
        path.rmdir()
        os.mkfifo(path)
        assert_rejected(plain, folder, f"{path.name} is not a regular file")
        path.unlink()
        path.symlink_to(path.name)  # to itself
        assert_rejected(plain, folder, f"{path.name} cannot be read: Too many levels")
        path.unlink()
        path.symlink_to("nowhere")
        with pytest.raises(FileNotFoundError, match=path.name):
            load_adapter(plain, folder)
        path.unlink()
        path.symlink_to(kept)  # as in the cache of the hub
        assert load_adapter(type(plain)(plain.config), folder) == 2
        path.unlink()
        kept.rename(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b" " * 5_000_000 + b"{}", "must be at most 4000000 bytes, got 5000002"),
        (b'{"peft_type": NaN}', "peft_type must be 'LORA', got nan"),
    ],
)
def test_broken_configurations(plain, folder, data, message):
    (folder / "adapter_config.json").write_bytes(data)
    assert_rejected(plain, folder, message)


HEADER = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 50_000_000) + b"{}",
        struct.pack("<Q", len(HEADER)) + HEADER,
        struct.pack("<Q", 73) + (HEADER % (b"9" * 9, b"9" * 10)) + b"\x00" * 40,
    ],
)
def test_broken_tensors(plain, folder, data):
    (folder / "adapter_model.safetensors").write_bytes(data)
    assert_rejected(plain, folder, "adapter_model.safetensors is not a safetensors file: ")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e5m2])
def test_tensors_that_are_not_floats(plain, folder, dtype):
    edit_tensors(
        folder, lambda t: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(2, 16).to(dtype)})
    )
    assert_rejected(plain, folder, rf"{Q_PROJ}\.lora_A\.weight must hold floats, got {dtype}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tensors_that_are_not_finite(plain, folder, value):
    edit_tensors(folder, lambda t: t[f"{Q_PROJ}.lora_A.weight"][1, 3].fill_(value))
    assert_rejected(plain, folder, rf"{Q_PROJ}\.lora_A\.weight must be finite")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_are_converted(plain, folder, dtype):
    edit_tensors(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    expected = load_file(folder / "adapter_model.safetensors")
    load_adapter(plain, folder)
    assert all(torch.equal(v, expected[k].float()) for k, v in adapter_state(plain).items())


def test_errors_are_one_short_line(plain, folder):
    edit_config(folder, target_modules=["a\nb"] * 10_000)
    with pytest.raises(ValueError, match=r"match no nn\.Linear") as caught:
        load_adapter(plain, folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"exclude_modules": ["layers.0.self_attn.q_proj"]}, [1]),
        ({"exclude_modules": r".*\.0\..*"}, [1]),
        ({"exclude_modules": ["not_there"]}, [0, 1]),
        ({"exclude_modules": []}, [0, 1]),
        ({"target_modules": r".*q_proj", "exclude_modules": r".*\.1\..*"}, [0]),
        ({"layers_to_transform": 1}, [1]),
        ({"layers_to_transform": [0], "layers_pattern": "layers"}, [0]),
        ({"layers_to_transform": [0], "layers_pattern": ["blocks", "lay.*"]}, [0]),
        ({"layers_to_transform": [], "layers_pattern": []}, [0, 1]),
        # A full name counts in every layer.
        (
            {
                "target_modules": ["q_proj", "model.layers.1.self_attn.q_proj"],
                "layers_to_transform": 0,
            },
            [0, 1],
        ),
    ],
)
def test_modules_that_are_left_out(plain, folder, changes, layers):
    edit_config(folder, **changes)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in layers]
    edit_tensors(folder, lambda t: [t.pop(k) for k in list(t) if not any(n in k for n in names)])
    assert load_adapter(plain, folder) == len(names)
    assert list(lora_modules(plain)) == names


def test_the_output_head_with_pefts_copy_of_its_weight(
    llama, plain, randomize, input_ids, tmp_path
):
    apply_lora(llama, ["lm_head", "v_proj"], r=2)
    randomize(llama)
    save_adapter(llama, tmp_path, base_model_name_or_path="x")
    key = "base_model.model.lm_head.base_layer.weight"
    own = llama.lm_head.weight
    edit_tensors(tmp_path, lambda t: t.update({key: own + 1}))
    assert_rejected(plain, tmp_path, r"trained on another lm_head\.weight")
    edit_tensors(tmp_path, lambda t: t.update({key: own.bfloat16()}))
    assert load_adapter(plain, tmp_path) == 3
    assert torch.equal(plain(input_ids=input_ids).logits, llama(input_ids=input_ids).logits)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight  # still tied
    edit_tensors(tmp_path, lambda t: t.update({key: own.float()}))
    assert load_adapter(plain, tmp_path) == 3  # onto its own layers


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
