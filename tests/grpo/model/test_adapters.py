"""Which layers a policy's adapter has, and what is said about those that have none."""

import warnings

import pytest
import torch

from grpo.errors import ConfigError
from grpo.model.lora_policy import LoRAPolicy
from lora import apply_lora, lora_modules, save_adapter
from tests.support.zoo import make

pytestmark = pytest.mark.filterwarnings("ignore:.*the token tree")


def policy_and_messages(name, tokenizer, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        policy = LoRAPolicy(make(name), tokenizer, **options)
    return policy, [str(w.message) for w in caught if "LoRA" in str(w.message)]


def test_what_jamba_cannot_have_is_said(tokenizer):
    policy, messages = policy_and_messages("jamba", tokenizer)
    experts, left_out = messages
    assert experts.startswith("no LoRA on model.layers.*.mamba.A_log, ")
    assert "model.layers.*.feed_forward.experts.gate_up_proj" in experts
    assert experts.endswith("% of the parameters are not in linear layers")
    assert left_out == (
        "layers without LoRA: model.layers.*.mamba.dt_proj "
        "(the model reads the weight without calling the layer)"
    )
    names = {name.rpartition(".")[2] for name in lora_modules(policy.model)}
    assert "in_proj" in names
    assert "dt_proj" not in names


def test_the_share_of_the_experts_is_theirs(tokenizer):
    model = make("mixtral")
    experts = sum(p.numel() for n, p in model.named_parameters() if "mlp.experts" in n)
    share = experts / sum(p.numel() for p in model.parameters())
    _, [message] = policy_and_messages("mixtral", tokenizer)
    assert message.startswith("no LoRA on model.layers.*.mlp.experts.gate_up_proj, model.layers.*")
    assert f": {share:.0%} of the parameters" in message


def test_nothing_is_said_of_a_llama(tokenizer):
    assert policy_and_messages("llama", tokenizer)[1] == []


def test_a_layer_that_is_read_past_its_forward_is_refused_if_it_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"cannot have LoRA: model\.layers\.\*\.mamba\.dt_proj"):
        LoRAPolicy(make("jamba"), tokenizer, lora_target_modules=["dt_proj", "in_proj"])
    model = make("jamba")
    apply_lora(model, ["dt_proj"], r=2)
    save_adapter(model, tmp_path, base_model_name_or_path="x")
    with pytest.raises(ValueError, match=r"cannot be used: model\.layers\.\*\.mamba\.dt_proj"):
        LoRAPolicy(make("jamba"), tokenizer, adapter=tmp_path)


def test_a_model_that_cannot_run_is_refused_in_one_line(tokenizer):
    model = make("llama")
    model.model.norm = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported: RuntimeError: ") as e:
        LoRAPolicy(model, tokenizer)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("forward", ["tree", "padded"])
def test_an_adapter_on_the_output_head(make_policy, batch, row_by_row, gradient, forward):
    options = {"lora_target_modules": ["lm_head", "q_proj"], "forward": forward}
    policy = make_policy(**options)
    got = policy.logprobs(batch, temperature=0.8)
    expected, _ = row_by_row(policy.model, batch, 0.8)
    torch.testing.assert_close(got.logprobs, expected, rtol=0, atol=1e-10)
    slope, other = gradient(policy, got.logprobs.sum()), gradient(policy, expected.sum())
    torch.testing.assert_close(slope, other, rtol=0, atol=1e-10)
    with torch.no_grad(), policy.reference():
        base = policy.logprobs(batch, temperature=0.8).logprobs
    start = make_policy(start=True, **options).logprobs(batch, temperature=0.8).logprobs
    torch.testing.assert_close(base, start, rtol=0, atol=1e-10)
    assert (got.logprobs - base).abs().max() > 0.01


def test_an_adapter_on_a_tied_output_head_is_not_merged(tokenizer):
    policy = LoRAPolicy(make("llama tied"), tokenizer, lora_target_modules=["lm_head"])
    with pytest.raises(ConfigError, match=r"cannot be merged: .*lm_head\.weight are one tied wei"):
        dict(policy.merged())
    policy = LoRAPolicy(make("llama"), tokenizer, lora_target_modules=["lm_head"])
    assert "lm_head.weight" in dict(policy.merged())
