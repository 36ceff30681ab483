"""Packed rows: the values and gradients of padded rows, and only where they are."""

import warnings

import pytest
import torch

from grpo.config import Config
from grpo.distributed import World
from grpo.model import packed
from grpo.model.check import check_model
from grpo.model.forward import padded_hidden
from grpo.model.head import find_decoder
from grpo.model.lora_policy import LoRAPolicy
from grpo.model.packed import packed_hidden, prepare_packed
from grpo.model.probe import set_attention
from grpo.training.updater import Updater
from tests.support.models import make_model, make_tokenizer, to_float64
from tests.support.workloads import Workload
from tests.support.zoo import make

ROWS = Workload(groups=2, group_size=3, prompt=4, shared_prefix=2, completion=12)


def compute(model, batch, way):
    """Return the last hidden states of all tokens, and the gradients of a random sum of them."""
    decoder, width = find_decoder(model), batch.input_ids.shape[1]
    if way == "packed":
        hidden = packed_hidden(decoder, batch)
    else:
        hidden = padded_hidden(decoder, batch, width)[batch.token_mask]
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    wanted = [p for p in decoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((hidden * weights.to(hidden)).sum(), wanted)
    return [hidden.detach(), *gradients]


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),  # causal
        ("mistral", "sdpa"),  # windows of 3 tokens
        ("llama", "eager"),  # whose softmax is in float32, whatever the model's dtype
    ],
)
@pytest.mark.parametrize("by_row", [True, False])  # as on a CPU, as on a GPU
def test_values_and_gradients_are_those_of_padded_rows(monkeypatch, family, attention, by_row):
    monkeypatch.setattr(packed, "ROW_BY_ROW", ("cpu",) if by_row else ())
    model, batch = to_float64(make_model(family)), ROWS.batch(16)
    assert len(set(batch.token_mask.sum(1).tolist())) > 2
    set_attention(model, attention)
    expected = compute(model, batch, "padded")
    set_attention(model, prepare_packed(attention))
    tolerance = 1e-10 if attention == "sdpa" else 1e-5
    for one, other in zip(compute(model, batch, "packed"), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    for one, other in zip(compute(model, batch, "padded"), expected, strict=True):
        assert torch.equal(one, other)  # calls without packed rows are as before


@pytest.mark.parametrize("by_row", [True, False])
def test_no_token_is_padded(monkeypatch, by_row):
    """All layers but attention see the tokens alone; the windowless one has no mask."""
    monkeypatch.setattr(packed, "ROW_BY_ROW", ("cpu",) if by_row else ())
    model, batch = make_model("llama"), ROWS.batch(16)
    set_attention(model, prepare_packed("sdpa"))
    seen, rows = [], []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[:2]))
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*tensors, attn_mask, is_causal, **options):
        assert attn_mask is None
        assert is_causal
        rows.append(len(tensors[0]))
        return attend(*tensors, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    packed_hidden(find_decoder(model), batch)
    assert seen == [(1, int(batch.token_mask.sum()))]
    assert rows[: len(rows) // 2] == ([1] * len(batch) if by_row else [len(batch)])


def packs(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_model(model, "padded").packed


@pytest.mark.parametrize("name", ["mistral window", "gemma2", "gpt_oss"])  # windows, caps, sinks
def test_models_that_are_packed(name):
    assert packs(make(name))


@pytest.mark.parametrize(
    "name",
    [
        "lfm2",  # convolutions
        "bamba",  # a recurrence
        "bloom",  # a mask of its own
        "deepseek_v4",  # compresses tokens
    ],
)
def test_models_that_are_not(name):
    model = make(name)
    assert not packs(model)
    assert "packed" not in model.config.get_text_config()._attn_implementation


def test_layers_of_other_kinds_are_not_packed():
    """Whatever short rows show: some layers pool tokens that only long rows have."""
    model = make_model("mistral")
    model.config.layer_types = ["full_attention", "compressed_attention"]
    assert not packs(model)


def test_a_wrong_mask_is_found_at_load_time(monkeypatch):
    """Rows that see the rows before them are not the model's own numbers."""
    one_row = packed.packed_attention

    def all_rows(attention, *arguments, packed_rows=None, **options):
        return one_row(attention, *arguments, **options)

    monkeypatch.setattr(packed, "packed_attention", all_rows)
    assert not packs(make_model("llama"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_is_that_of_padded_rows(checkpointing):
    policy = LoRAPolicy(
        make_model("mistral"),
        make_tokenizer(),
        forward="padded",
        activation_checkpointing=checkpointing,
    )
    assert policy.packed
    random = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=random)
    updater = Updater(Config(max_tokens_per_microbatch=40), policy, World.single())
    batch, found = ROWS.batch(16), []
    for policy.packed in (True, False):
        sums = updater.accumulate(batch)
        assert len(sums) > 1
        gradients = [p.grad.clone() for p in policy.parameters()]
        found.append([updater.logprobs(batch), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
