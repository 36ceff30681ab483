"""Comparison with PEFT on many architectures: its adapters and ours give the same logits."""

import warnings

import pytest
import torch
from torch import nn

from lora import apply_lora, disabled_adapters, load_adapter, lora_modules, save_adapter
from lora.compatibility import _EXPERT_NAMES, _REFUSED_NAMES
from tests.support.zoo import ZOO, make

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]
peft = pytest.importorskip("peft", reason="compares with PEFT, which is not installed")

IDS = torch.arange(3, 13)[None]
WITHOUT_LINEAR = {"falcon", "falcon alibi", "falcon new", "gpt2", "openai-gpt"}
NOT_A_DECODER = {"blt", "minimax_m3_vl_text", "t5", "xlm"}  # do not take a row of token ids alone
NAMES = sorted(ZOO.keys() - WITHOUT_LINEAR - NOT_A_DECODER)
LEFT_OUT = {
    "deepseek_v3": {"gate_proj", "up_proj", "down_proj"},
    "falcon_h1": {"out_proj"},
    "jamba": {"dt_proj"},
    "laguna": {"gate_proj", "up_proj", "down_proj"},
    "longcat_flash": {"gate_proj", "up_proj", "down_proj", "classifier"},
    "mamba": {"dt_proj", "out_proj"},
    "nemotron_h": {"out_proj"},
    "llama": set(),
    "mixtral": set(),
    "qwen2_moe": set(),
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def assert_same(first, second, base):
    """Compare logits on the scale of what the adapter changes; rounding grows with it."""
    change = (first - base).abs().max()
    assert change > 0.01
    assert (first - second).abs().max() < 1e-4 * change


def randomize(parameters):
    torch.manual_seed(2)
    for name, parameter in parameters:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)


def refusal_of(model, folder):
    """Load an adapter; return why it is refused, or ""."""
    try:
        load_adapter(model, folder, probe=lambda: model(input_ids=IDS, use_cache=False).logits)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_peft_reads_our_adapter(name, tmp_path):
    ours = make(name)
    names = {n for n, m in ours.named_modules() if type(m) is nn.Linear}
    apply_lora(ours, r=3, alpha=5, probe=lambda: ours(input_ids=IDS, use_cache=False).logits)
    randomize(ours.named_parameters())
    save_adapter(ours, tmp_path, base_model_name_or_path="")
    fresh = make(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(fresh, tmp_path).eval()
    adapted = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert len(adapted) == 2 * len(lora_modules(ours))
    with disabled_adapters(ours):
        base = logits(ours)
    assert_same(logits(ours), logits(theirs), base)
    if name in LEFT_OUT:
        head = {n for n, m in ours.named_modules() if m is ours.get_output_embeddings()}
        left_out = {n.rpartition(".")[2] for n in names - lora_modules(ours).keys() - head}
        assert left_out == LEFT_OUT[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "o_proj", "down_proj", "out_proj"]])
def test_we_read_pefts_adapter(name, targets, tmp_path):
    model, ours = make(name), make(name)
    base = logits(model)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=targets)
    try:
        theirs = peft.get_peft_model(model, config).eval()
        randomize(theirs.named_parameters())
        expected = logits(theirs)
        theirs.save_pretrained(tmp_path)
    except (AttributeError, RuntimeError, ValueError) as error:
        pytest.skip(f"PEFT: {type(error).__name__}: {error}")
    refusal = refusal_of(ours, tmp_path)
    if not refusal:
        assert_same(expected, logits(ours), base)
    else:
        assert "\n" not in refusal
        assert not lora_modules(ours)
        assert torch.equal(logits(ours), base)


def test_the_model_types_are_those_of_peft():
    from peft.tuners import tuners_utils
    from peft.utils.transformers_weight_conversion import (
        _MODEL_TO_CONVERSION_PATTERN,
        _MOE_TARGET_MODULE_MAPPING,
    )

    expected = {
        model_type: set(_MOE_TARGET_MODULE_MAPPING[family])
        for model_type, family in _MODEL_TO_CONVERSION_PATTERN.items()
        if family in _MOE_TARGET_MODULE_MAPPING
    }
    assert {key: set(names) for key, names in _EXPERT_NAMES.items()} == expected

    config = peft.LoraConfig(target_modules=["q_proj"])
    for model_type in ZOO | _REFUSED_NAMES:
        model = make("llama")
        model.config.model_type = model_type
        refused = set()
        for name in ("out_proj", "conv1d", "in_proj", "dt_proj", "q_proj"):
            try:
                tuners_utils._check_lora_target_modules_mamba(config, model, name)
            except ValueError:
                refused.add(name)
        assert refused == set(_REFUSED_NAMES.get(model_type, ()))
