"""Comparison with PEFT: equal logits and gradients, and files that both can load."""

import warnings

import pytest
import torch

from lora import (
    adapter_state,
    apply_lora,
    load_adapter,
    load_adapter_state,
    lora_modules,
    save_adapter,
)

pytestmark = pytest.mark.reference
peft = pytest.importorskip("peft", reason="compares with PEFT, which is not installed")

TARGETS = {
    "all-linear": "all-linear",
    "names": ["q_proj", "v_proj"],
    "one layer": ["layers.1.self_attn.q_proj"],
}


def peft_config(**changes):
    settings = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "target_modules": "all-linear"}
    return peft.LoraConfig(**(settings | changes))


def peft_model(model, **changes):
    """Make a PEFT model in float64 with random adapter tensors."""
    wrapped = peft.get_peft_model(model, peft_config(**changes)).double().eval()
    torch.manual_seed(4)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            # Values that float32 represents exactly, since files are in float32.
            parameter.data = (torch.randn(parameter.shape) * 0.3).double()
    return wrapped


def peft_adapted(wrapped):
    layers = wrapped.base_model.model.named_modules()
    return {name for name, module in layers if isinstance(module, peft.tuners.lora.LoraLayer)}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_same_logits_and_gradients(make_model, input_ids, targets):
    theirs = peft_model(make_model(torch.float64), target_modules=targets)
    ours = make_model(torch.float64)
    apply_lora(ours, targets, r=3, alpha=5)
    assert set(lora_modules(ours)) == peft_adapted(theirs)
    load_adapter_state(ours, peft.get_peft_model_state_dict(theirs))
    for module in lora_modules(ours).values():
        module.double()

    logits, expected = (m(input_ids=input_ids).logits for m in (ours, theirs))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    for each in (logits, expected):
        each.log_softmax(-1)[..., 3].mean().backward()
    gradients = {
        name.replace(".default.weight", "").removeprefix("base_model.model."): p.grad
        for name, p in theirs.named_parameters()
        if p.requires_grad
    }
    mine = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert mine.keys() == gradients.keys()
    for name, gradient in mine.items():
        assert gradient.abs().max() > 1e-8
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_initialises_from_the_same_distribution(llama, dtype):
    # Both draw A from kaiming_uniform(a=sqrt(5)) and keep it in float32 over a bfloat16 base.
    wrapped = peft.get_peft_model(llama.to(dtype), peft_config(r=64))
    a = wrapped.base_model.model.model.layers[0].mlp.down_proj.lora_A["default"].weight
    ours = type(llama)(llama.config).to(dtype)
    apply_lora(ours, r=64)
    ours_a = lora_modules(ours)["model.layers.0.mlp.down_proj"].lora_A
    assert ours_a.dtype == a.dtype == torch.float32
    for moment in (lambda t: t.abs().max(), torch.std):
        torch.testing.assert_close(moment(ours_a), moment(a), rtol=0.05, atol=0)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_peft_loads_our_files(make_model, input_ids, randomize, tmp_path, targets):
    ours = make_model(torch.float64)
    apply_lora(ours, targets, r=3, alpha=5)
    randomize(ours)
    save_adapter(ours, tmp_path, base_model_name_or_path="some/base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns about missing adapter keys
        theirs = peft.PeftModel.from_pretrained(make_model(torch.float64), tmp_path).eval()
    assert peft_adapted(theirs) == set(lora_modules(ours))
    logits, expected = (m(input_ids=input_ids).logits for m in (ours, theirs))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    loaded = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    mine = adapter_state(ours)
    assert loaded.keys() == mine.keys()
    assert all(torch.equal(loaded[key].float(), tensor) for key, tensor in mine.items())


def test_peft_loads_our_output_head(make_model, input_ids, randomize, tmp_path):
    ours = make_model(torch.float64)
    apply_lora(ours, ["lm_head", "q_proj"], r=3, alpha=5)
    randomize(ours)
    save_adapter(ours, tmp_path, base_model_name_or_path="some/base")
    with pytest.warns(UserWarning, match="a tied layer is part of the adapter"):
        theirs = peft.PeftModel.from_pretrained(make_model(torch.float64), tmp_path).eval()
    logits, expected = (m(input_ids=input_ids).logits for m in (ours, theirs))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*layers\.1\..*_proj"},
        {"use_rslora": True},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": "(.*q_proj)|lm_head"},
        {"exclude_modules": ["q_proj", "layers.1.self_attn.v_proj"]},
        {"exclude_modules": r".*\.1\..*|.*v_proj"},
        {"target_modules": r".*_proj", "exclude_modules": r".*layers\.1\..*"},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
        {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {
            "target_modules": ["v_proj", "model.layers.1.self_attn.q_proj"],
            "layers_to_transform": [0, 1],
            "layers_pattern": ["blocks", "lay.*"],
            "exclude_modules": ["0.self_attn.v_proj"],
        },
    ],
    ids=lambda changes: " ".join(changes) or "all-linear",
)
def test_we_load_pefts_files(make_model, input_ids, tmp_path, changes):
    theirs = peft_model(make_model(torch.float64), **changes)
    theirs.save_pretrained(tmp_path)
    ours = make_model(torch.float64)
    assert load_adapter(ours, tmp_path) == len(peft_adapted(theirs))
    logits, expected = (m.eval()(input_ids=input_ids).logits for m in (ours, theirs))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)
    with theirs.disable_adapter():
        assert not torch.allclose(theirs(input_ids=input_ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        (
            {"target_parameters": ["q_proj.weight"], "target_modules": ["v_proj"]},
            "target_parameters",
        ),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_other_features_of_peft_are_rejected_by_name(llama, tmp_path, changes, feature):
    config = llama.config
    peft.get_peft_model(llama, peft_config(**changes)).save_pretrained(tmp_path)
    plain = type(llama)(config)
    with pytest.raises(ValueError, match=f"not supported: .*'{feature}'"):
        load_adapter(plain, tmp_path)
    assert not lora_modules(plain)
