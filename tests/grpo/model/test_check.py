"""The check at load time: what is wrong is noticed, and the model is left as it was."""

import math
import warnings
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from grpo.model import check, limits, ways
from grpo.model.check import AdapterCheck, check_model
from grpo.model.decoding import PromptDecoder
from grpo.model.forward import SharedPrefix, TreeLayout, recomputed_layers, tree_hidden
from grpo.model.full_policy import FullPolicy
from grpo.model.head import measure_head
from grpo.model.limits import length_limit, probe_length, short_rope_length, special_ids
from grpo.model.lora_policy import LoRAPolicy
from grpo.model.probe import first_layers, make_rows
from grpo.tree.layers import prepare
from grpo.tree.token_tree import build_tree
from grpo.tree.tree_cache import NodeBuffers, TreeCache
from lora.layers import LoRALinear
from tests.support.models import make_model, round_weights
from tests.support.zoo import make, make_config, randomize

ROW = [5, 9, 17, 3, 8, 21, 40, 2, 33, 11, 7, 60]


def changed(name, **changes):
    """Make a model of the zoo with a changed configuration."""
    from transformers import AutoModelForCausalLM

    config = make_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return randomize(AutoModelForCausalLM.from_config(config)).eval()


def quiet(model, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_model(model, *args, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "input_scale", "scale", "cap"),
    [
        ("llama", 1, 1, None),
        ("granite", 1, 1 / 2.5, None),
        ("cohere", 1, 0.3, None),
        ("hyperclovax", 1, 2.5, None),
        ("minicpm3", 16 / 32, 1, None),
        ("gemma2", 1, 1, 5.0),
        ("falcon_h1", 1, 0.5, None),
    ],
)
def test_scale_and_cap_are_measured(name, input_scale, scale, cap, dtype):
    changes = {"lm_head_multiplier": 0.5} if name == "falcon_h1" else {}
    model = round_weights(changed(name, **changes), dtype)
    found = measure_head(model)
    assert found.input_scale == pytest.approx(input_scale, rel=1e-9)
    assert found.scale == pytest.approx(scale, rel=1e-6)
    assert found.cap == (cap and pytest.approx(cap, rel=1e-6))


def test_logits_in_bfloat16_are_scaled_and_capped_in_float32():
    model = round_weights(make("gemma2"), torch.bfloat16)
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = 5.0 * torch.tanh(model.lm_head(hidden).float() / 5.0)
    torch.testing.assert_close(measure_head(model)(hidden), expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits + 1, "more between its output layer and its logits"),
        (lambda logits: logits.clamp(max=20), "more between its output layer and its logits"),
        (lambda logits: logits.sign() * logits.abs().sqrt(), "more between its output layer"),
        (lambda logits: logits[..., :-1], "do not come from its output layer"),
    ],
)
def test_other_changes_of_the_logits_are_refused(monkeypatch, change, reason):
    from transformers import LlamaForCausalLM

    own = LlamaForCausalLM.forward

    def changed(self, *args, **options):
        output = own(self, *args, **options)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", changed)
    with pytest.raises(ValueError, match=f"^LlamaForCausalLM is not supported: .*{reason}"):
        check_model(make("llama"))


def test_a_norm_between_decoder_and_output_layer_is_refused():
    model = make("llama")
    model.lm_head.register_forward_pre_hook(
        lambda _, inputs: (nn.functional.layer_norm(inputs[0], inputs[0].shape[-1:]),)
    )
    with pytest.raises(ValueError, match="does not read its last hidden states"):
        check_model(model)
    with pytest.raises(ValueError, match="does not read its last hidden states"):
        check_model(make("modernbert-decoder"))


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("llama", 256),
        ("llama llama3", 256),  # stretched, but alike for all lengths
        ("llama yarn", 256),
        ("llama longrope", 64),
        ("phi3 longrope", 64),
        ("bloom", limits.UNLIMITED),
        ("mamba", limits.UNLIMITED),
    ],
)
def test_rows_stay_below_the_length_at_which_rotary_angles_change(name, limit):
    model = make(name)
    assert length_limit(model) == limit
    assert short_rope_length(model.config) == (64 if "longrope" in name else 0)


def test_the_length_at_which_dynamic_ntk_changes():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = changed("llama", rope_parameters=rope, max_position_embeddings=64)
    before = model(torch.tensor([ROW])).logits
    assert limits.rotary_limit(model.model.rotary_emb, None, 200) == 64
    assert torch.equal(before, model(torch.tensor([ROW])).logits)  # and its state is as before


def test_the_probe_reaches_past_a_window_and_avoids_special_tokens():
    model = changed("mistral window", sliding_window=30)
    assert probe_length(model, 20) == 38
    assert probe_length(make("llama"), 20) == 20
    model.config.image_token_id, model.config.eos_token_id = 7, [3, 4]
    assert {3, 4, 7} <= special_ids(model)
    rows = make_rows(model, 256)
    assert len(rows[-1]) == 38
    assert not special_ids(model) & {i for row in rows for i in row}
    assert max(map(len, make_rows(model, 12))) == 12


def test_a_layer_called_twice_keeps_both_states():
    model = make("diffllama")
    decoder, rows = model.model, [ROW, ROW[:6] + ROW[:3]]
    expected = torch.cat([decoder(torch.tensor([row])).last_hidden_state[0] for row in rows])
    prepare(decoder)
    tree = build_tree(rows)
    prefix = SharedPrefix(decoder, torch.tensor(ROW[:5]), 0)
    hidden = tree_hidden(decoder, tree, 0, prefix)[tree.nodes[tree.nodes >= 0]]
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    cache = TreeCache(decoder, 40, torch.device("cpu"))
    with torch.no_grad():
        for length in (4, 5, len(ROW)):
            nodes = [cache.insert(-1, ROW[: n + 1]) for n in range(length)]
            cache.compute()
        torch.testing.assert_close(
            cache.states(np.array(nodes)), expected[: len(ROW)], rtol=1e-4, atol=1e-4
        )


def test_a_wrong_difference_that_bfloat16_would_hide_is_noticed(monkeypatch):
    model = round_weights(make("llama"), torch.bfloat16)
    assert check_model(model).mode == "tree"
    right = ways.tree

    def wrong(some):
        logits, tokens = right(some)
        return logits + 0.003 * torch.sin(torch.arange(logits.shape[-1])), tokens

    monkeypatch.setattr(ways, "tree", wrong)
    with pytest.warns(UserWarning, match=r"token tree does not give .* nats apart in float32"):
        assert check_model(round_weights(make("llama"), torch.bfloat16)).mode == "padded"
    with pytest.raises(ValueError, match=r"^the token tree does not fit LlamaForCausalLM: it does"):
        check_model(make("llama"), "tree")


@pytest.mark.parametrize("way", ["tree", "shared_prefix", "tree_cache"])
def test_each_way_of_the_tree_can_rule_it_out(monkeypatch, way):
    right = getattr(ways, way)

    def wrong(some):
        logits, tokens = right(some)
        logits[-1, 0] += 0.1
        return logits, tokens

    monkeypatch.setattr(ways, way, wrong)
    assert quiet(make("llama")).mode == "padded"


def test_states_kept_by_layer_and_not_by_call_are_noticed(monkeypatch):
    monkeypatch.setattr(NodeBuffers, "call_of", lambda self, layer: (layer, 0))
    assert quiet(make("llama")).mode == "tree"
    assert quiet(make("diffllama")).mode == "padded"
    monkeypatch.undo()
    assert quiet(make("diffllama")).mode == "tree"


def test_wrong_padded_rows_are_refused(monkeypatch):
    right = ways.padded

    def wrong(some):
        logits, tokens = right(some)
        logits[3, 0] += 0.01
        return logits, tokens

    monkeypatch.setattr(ways, "padded", wrong)
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM is not supported: as padded rows it"):
        check_model(make("llama"), "padded")


def test_decoding_without_a_cache_where_the_models_own_is_wrong(monkeypatch):
    assert quiet(make("llama"), "padded").use_cache
    monkeypatch.setattr("transformers.cache_utils.Cache.reorder_cache", lambda self, index: None)
    with pytest.warns(UserWarning, match="its cache is not right"):
        assert not check_model(make("llama"), "padded").use_cache


@pytest.mark.parametrize("use_cache", [True, False])
def test_decoding_several_rows_of_a_prompt(use_cache):
    model = make("mistral window")
    decoder = PromptDecoder(model.model, ROW[:4], torch.device("cpu"), use_cache=use_cache)
    rows = [[*ROW[:4]] for _ in range(3)]
    kept, hidden = [0, 0, 0], [decoder.start()]
    with torch.no_grad():
        for step in range(10):  # past the window of 8; the middle row leaves after 4 steps
            if step == 4:
                del rows[1]
                kept = [0, 2]
            new = [(7 * step + 13 * n) % 90 + 3 for n in range(len(rows))]
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
            hidden.append(decoder.extend(kept, new))
            kept = list(range(len(rows)))
            for row, state in zip(rows, hidden[-1], strict=True):
                own = model.model(torch.tensor([row]), use_cache=False).last_hidden_state[0, -1]
                torch.testing.assert_close(state, own, rtol=1e-4, atol=1e-4)


def test_attention_that_only_eager_computes():
    model = changed("gemma2", layer_types=["full_attention"] * 2)
    model.config._attn_implementation = "sdpa"  # which ignores the cap of its attention
    plan = quiet(model)
    assert plan.mode == "padded"
    assert model.config._attn_implementation == "packed_eager"


def test_a_model_that_looks_ahead_is_refused(monkeypatch):
    model = make("llama")
    own = model.model.forward

    def ahead(*args, **options):
        output = own(*args, **options)
        output.last_hidden_state = output.last_hidden_state.flip(1).cumsum(1).flip(1)
        return output

    monkeypatch.setattr(model.model, "forward", ahead)
    with pytest.raises(ValueError, match="its logits depend on later tokens"):
        check_model(model)


def test_merged_weights_that_compute_something_else_are_refused(tokenizer, monkeypatch):
    own = LoRALinear.merged_weight
    monkeypatch.setattr(LoRALinear, "merged_weight", lambda self: 2 * own(self) - self.base_weight)
    with pytest.raises(ValueError, match=r"^the adapter does not fit LlamaForCausalLM: merged"):
        LoRAPolicy(make_model("llama"), tokenizer)


@pytest.mark.parametrize("name", ["opt", "biogpt", "llama"])
def test_recomputed_layers_stay_in_eval_mode(name):
    dropouts = ("dropout", "attention_dropout", "hidden_dropout_prob", "activation_dropout")
    model = changed(name, **dict.fromkeys(dropouts, 0.5))
    ids = torch.tensor([ROW])

    def gradient(recompute):
        decoder = model.get_decoder()
        if recompute:
            with recomputed_layers(decoder):
                loss = model(ids).logits.sin().sum()
        else:
            loss = model(ids).logits.sin().sum()
        return torch.autograd.grad(loss, list(decoder.parameters()), allow_unused=True)

    for got, expected in zip(gradient(True), gradient(False), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert torch.equal(got, expected)
    assert not any(module.training for module in model.modules())


def test_a_gradient_that_recomputation_changes_is_refused(monkeypatch):
    @contextmanager
    def wrong(decoder):
        handle = decoder.norm.register_forward_hook(lambda _, inputs, output: output.detach())
        with recomputed_layers(decoder):
            yield
        handle.remove()

    assert quiet(make("llama"), activation_checkpointing=True).mode == "tree"
    monkeypatch.setattr(check, "recomputed_layers", wrong)
    with pytest.raises(ValueError, match=r"^activation_checkpointing does not fit Llama"):
        quiet(make("llama"), activation_checkpointing=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has no layers that can be recomputed"):
        quiet(make("ctrl"), activation_checkpointing=True)


def test_the_check_leaves_the_model_as_it_was(tokenizer):
    model = round_weights(make_model("llama"), torch.bfloat16)
    policy = LoRAPolicy(model, tokenizer, lora_r=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    quiet(model, adapter=AdapterCheck(lambda model: None, lambda model: nullcontext()))
    assert torch.equal(state, torch.get_rng_state())
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert len(model.model.layers) == policy.model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "layers"),
    [("llama", 2), ("smollm3 late", 4), ("olmo3 late", 4), ("deepseek_v3", 2)],
)
def test_the_float32_copy_has_a_layer_of_each_kind(name, layers):
    model = round_weights(make(name), torch.bfloat16)
    copy = first_layers(model)
    assert len(copy.model.layers) == layers
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    assert len(model.model.layers) == model.config.num_hidden_layers


LONG = {"max_position_embeddings": 600, "sliding_window": 300}


@pytest.mark.parametrize(
    ("name", "changes", "mode", "use_cache"),
    [
        ("llama", {}, "tree", True),
        ("llama", LONG, "padded", False),  # the cache follows a window that the model ignores
        ("mistral", LONG | {"use_sliding_window": False}, "padded", True),  # an unknown key
        ("mistral window", LONG, "padded", True),
        ("gemma2", LONG, "padded", True),
    ],
)
def test_windows_longer_than_the_rows_of_the_check(name, changes, mode, use_cache):
    model = changed(name, **changes)
    plan = quiet(model)
    assert (plan.mode, plan.use_cache) == (mode, use_cache)
    assert getattr(model.config, "sliding_window", None) in (None, changes.get("sliding_window"))


def test_a_model_whose_forward_changes_its_weights_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^RwkvForCausalLM is not supported: its own forward"):
        LoRAPolicy(changed("rwkv", num_hidden_layers=8), tokenizer)
    model = make("llama")

    @torch.no_grad()
    def change(*_):
        model.lm_head.weight.mul_(1.0001)

    model.register_forward_pre_hook(change)
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM is not supported: its own forward"):
        FullPolicy(model, tokenizer)


def test_numbers_that_rounding_decides_are_refused():
    with pytest.raises(ValueError, match=r"a rounding error changes its log-probabilities by"):
        check_model(changed("granite", logits_scaling=1e-6))


def test_a_model_that_keeps_states_of_its_last_call():
    model = make("llama")
    model.model.state = model(torch.tensor([ROW])).logits  # with the history of its gradient
    assert check_model(model).mode == "tree"


def test_full_training_needs_a_model_that_can_be_loaded_again(tokenizer):
    with pytest.raises(ValueError, match=r"^train=full needs a model that can be loaded again"):
        FullPolicy(make_text_part("mllama_text_model"), tokenizer)


def make_text_part(model_type):
    """Make a Llama whose configuration names a type that is no causal language model's."""

    class TextConfig(LlamaConfig):
        pass

    TextConfig.model_type = model_type
    model = make("llama")
    model.config.__class__ = TextConfig
    return model


def test_not_all_layers_of_a_deep_model_are_copied():
    assert len(first_layers(changed("llama", num_hidden_layers=12)).model.layers) == 2


def test_infinite_logits_are_refused():
    model = make("llama")
    model.lm_head.weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match="its logits are not finite"):
        check_model(model)


def test_the_first_node_a_tree_does_not_see(monkeypatch):
    right = TreeLayout.__init__

    def wrong(self, tree, *rest, **options):
        right(self, tree, *rest, **options)
        for chunk in self.chunks:
            chunk.mask[-1, 0] = False

    monkeypatch.setattr(TreeLayout, "__init__", wrong)
    assert quiet(make("llama")).mode == "padded"
