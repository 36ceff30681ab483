import pytest
import torch

from grpo.algorithm.batch import split_batch
from grpo.algorithm.losses import policy_loss
from grpo.model.forward import TreeLayout
from grpo.model.lora_policy import LoRAPolicy
from grpo.tree.chunks import CHUNK
from grpo.tree.layers import tree_attention
from grpo.tree.token_tree import build_tree, count_distinct

pytestmark = pytest.mark.filterwarnings("ignore:the token tree does not fit")
T = 0.8
P = [3, 4, 5, 6]
FAMILIES = {"llama": "tree", "lfm2": "tree", "mistral": "padded"}


def close(one, other, atol=1e-10):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def scalar(logprobs, entropy):
    """Sum every log-probability and entropy, each times a different factor."""
    factors = torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)
    return (logprobs * factors).sum() + (entropy * factors.flip(0, 1)).sum()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 5)  # attention in several pieces on these small trees


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_decide_the_forward(make_policy, family):
    assert make_policy(family).forward_mode == FAMILIES[family]


def test_a_window_in_the_configuration_counts_only_if_it_is_used(base_model, tokenizer):
    for used, forward in ((True, "padded"), (False, "tree")):
        model = base_model()
        model.config.sliding_window, model.config.use_sliding_window = 4096, used
        assert LoRAPolicy(model, tokenizer).forward_mode == forward


@pytest.mark.parametrize(
    ("family", "forward"),
    [(f, m) for f in ("llama", "lfm2") for m in ("tree", "padded")] + [("mistral", "padded")],
)
def test_both_forwards_equal_the_models_own_rows(
    make_policy, batch, row_by_row, gradient, family, forward
):
    policy = make_policy(family, forward=forward)
    got = policy.logprobs(batch, temperature=T)
    expected = row_by_row(policy.model, batch, T)
    close(got.logprobs, expected[0])
    close(got.entropy, expected[1])
    slope, other = gradient(policy, scalar(*got)), gradient(policy, scalar(*expected))
    assert slope.abs().max() > 1  # the bound below is an absolute one
    close(slope, other)


def test_the_reason_why_a_model_gets_padded_rows(base_model, tokenizer):
    with pytest.warns(UserWarning, match=r"^MistralForCausalLM: the token tree .* sliding window"):
        LoRAPolicy(base_model("mistral"), tokenizer)
    with pytest.raises(ValueError, match=r"does not fit MistralForCausalLM.* sliding window"):
        LoRAPolicy(base_model("mistral"), tokenizer, forward="tree")
    model = base_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.warns(UserWarning, match="layers of kind linear_attention"):
        LoRAPolicy(model, tokenizer)
    model = base_model()
    model.set_attn_implementation("eager")
    with pytest.warns(UserWarning, match="attention implementation 'eager'"):
        LoRAPolicy(model, tokenizer)


def test_a_tree_with_wrong_logits_is_not_used(base_model, tokenizer, monkeypatch):
    right = TreeLayout.__init__

    def wrong(self, tree, *rest):
        right(self, tree, *rest)
        for chunk in self.chunks:
            chunk.mask[-1, 0] = False  # one node does not see the first token

    monkeypatch.setattr(TreeLayout, "__init__", wrong)
    with pytest.warns(UserWarning, match="does not give the model's own log-prob"):
        assert LoRAPolicy(base_model(), tokenizer).forward_mode == "padded"


def test_attention_in_bfloat16_is_computed_in_float32():
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 15, 8, generator=random).bfloat16() for heads in (4, 2, 2))
    layout = TreeLayout(build_tree([[1, 2, 3, n, n, n] for n in range(4)]), 0, q.device)
    got, _ = tree_attention(None, q, k, v, None, seq_idx=layout)
    assert got.dtype == torch.bfloat16
    wide, _ = tree_attention(None, q.float(), k.float(), v.float(), None, seq_idx=layout)
    torch.testing.assert_close(got, wide.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "lfm2"])
@pytest.mark.parametrize("forward", ["tree", "padded"])
def test_activation_checkpointing_changes_only_the_work(
    make_policy, batch, gradient, monkeypatch, family, forward
):
    plain = make_policy(family, forward=forward)
    policy = make_policy(family, forward=forward, activation_checkpointing=True)
    linear, calls = torch.nn.functional.linear, []
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda *args: calls.append(1) or linear(*args)
    )
    got = policy.logprobs(batch, temperature=T)
    in_forward = len(calls)
    slope = gradient(policy, scalar(*got))
    assert len(calls) > 1.8 * in_forward  # every layer again
    calls.clear()
    expected = plain.logprobs(batch, temperature=T)
    other = gradient(plain, scalar(*expected))
    assert len(calls) == in_forward
    close(got.logprobs, expected.logprobs)
    close(slope, other)
    assert not any(module.training for module in policy.model.modules())
    with torch.no_grad():  # nothing to recompute for
        policy.logprobs(batch)


def test_the_tree_computes_each_prefix_once(make_policy, batch, monkeypatch):
    policy = make_policy()
    seen = []
    forward = policy.decoder.forward
    monkeypatch.setattr(
        policy.decoder, "forward", lambda **k: seen.append(k["input_ids"].shape) or forward(**k)
    )
    policy.logprobs(batch)
    distinct = {tuple(row[: t + 1]) for row in batch.rows() for t in range(len(row))}
    assert seen == [(1, len(distinct))]


@pytest.mark.parametrize("family", FAMILIES)
def test_splitting_changes_neither_loss_nor_gradient(
    make_policy, groups, batch_of, gradient, family
):
    policy = make_policy(family)
    batch = batch_of(groups, aggregation="grpo")
    with torch.no_grad(), policy.reference():
        ref = policy.logprobs(batch).logprobs
    noise = torch.sin(torch.arange(ref.numel())).view_as(ref)
    old = policy.logprobs(batch).logprobs.detach() + 0.1 * noise

    def loss(part, rows):
        return policy_loss(
            policy.logprobs(part, temperature=T).logprobs,
            part.advantages,
            part.completion_mask,
            part.token_weights,
            old_logprobs=old[rows],
            ref_logprobs=ref[rows],
            beta=0.3,
        )[0]

    whole = loss(batch, slice(None))
    slope = gradient(policy, whole)
    for max_tokens in (1, 9, 16):
        parts = split_batch(batch, max_tokens)
        losses = [loss(part, rows_of(batch, part)) for part in parts]
        assert len(parts) > 1
        close(sum(losses), whole)
        close(sum(gradient(policy, one) for one in losses), slope)


@pytest.mark.parametrize("family", ["llama", "lfm2"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("begins_with", ["two tokens", "a whole prompt"])
def test_a_prefix_shared_by_micro_batches_changes_neither_values_nor_gradient(
    make_policy,
    groups,
    group_of,
    batch_of,
    gradient,
    monkeypatch,
    family,
    checkpointing,
    begins_with,
):
    policy = make_policy(family, activation_checkpointing=checkpointing)
    if begins_with == "two tokens":
        batch = batch_of(groups[:2])
    else:  # and the first sampled token, which reads the hidden state before it
        batch = batch_of([group_of((1, (P, [8, 9])), (0, (P, [8, 2, 0])), (0, (P, [8, 8])))])
    whole = policy.logprobs(batch, temperature=T)
    slope = gradient(policy, scalar(*whole))

    seen = []
    forward = policy.decoder.forward
    monkeypatch.setattr(
        policy.decoder, "forward", lambda **k: seen.append(k["input_ids"].shape[1]) or forward(**k)
    )
    parts = split_batch(batch, 9 if begins_with == "two tokens" else 1)
    assert len(parts) > 1
    prefix = policy.shared_prefix(parts)
    length = {"two tokens": 2, "a whole prompt": 5}[begins_with]
    assert seen == [length]
    for p in policy.parameters():
        p.grad = None
    factors = torch.linspace(-1, 2, whole.logprobs.numel(), dtype=torch.float64)
    factors = factors.view(whole.logprobs.shape)
    for part in parts:
        rows = rows_of(batch, part)
        got = policy.logprobs(part, temperature=T, prefix=prefix)
        close(got.logprobs, whole.logprobs[rows])
        close(got.entropy, whole.entropy[rows])
        entropies = (got.entropy * factors.flip(0, 1)[rows]).sum()
        ((got.logprobs * factors[rows]).sum() + entropies).backward()
    prefix.backward()
    close(torch.cat([p.grad.flatten() for p in policy.parameters()]), slope)
    assert slope.abs().max() > 1
    distinct = [count_distinct(part.rows()) - length for part in parts]
    assert seen == [length, *distinct]  # the prefix once

    with torch.no_grad():
        prefix = policy.shared_prefix(parts)
        for part in parts:
            got = policy.logprobs(part, temperature=T, prefix=prefix).logprobs
            close(got, whole.logprobs[rows_of(batch, part)])


@pytest.mark.parametrize("packed", [True, False])
def test_rows_are_packed_or_as_wide_as_the_longest(make_policy, batch, packed):
    policy, widths = make_policy(forward="padded"), []
    policy.packed = policy.packed and packed
    policy.decoder.register_forward_pre_hook(
        lambda module, args, options: widths.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    lengths = [len(row) for row in batch.rows()]
    shortest = batch.select([lengths.index(min(lengths))])
    whole = policy.logprobs(batch).logprobs[lengths.index(min(lengths))]
    assert policy.logprobs(shortest).logprobs.shape == shortest.input_ids.shape
    torch.testing.assert_close(policy.logprobs(shortest).logprobs[0], whole)
    assert widths == [sum(lengths) if packed else max(lengths), min(lengths), min(lengths)]
    assert min(lengths) < max(lengths)


def test_when_there_is_no_shared_prefix(make_policy, groups, batch, batch_of):
    assert make_policy().shared_prefix(split_batch(batch, 9)) is None  # the rows share nothing
    shared = batch_of(groups[:2])
    assert make_policy().shared_prefix([shared]) is None
    assert make_policy(forward="padded").shared_prefix(split_batch(shared, 9)) is None


def rows_of(batch, part):
    """Return the numbers of a part's rows in the batch; equal rows have different numbers."""
    free = list(range(len(batch)))
    found = []
    for n in range(len(part)):
        row = next(
            m
            for m in free
            if torch.equal(batch.input_ids[m], part.input_ids[n])
            and torch.equal(batch.completion_mask[m], part.completion_mask[n])
            and batch.advantages[m] == part.advantages[n]
        )
        free.remove(row)
        found.append(row)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_is_the_base(make_policy, base_model, batch, row_by_row, family):
    policy = make_policy(family)
    base, _ = row_by_row(base_model(family), batch, T)
    with torch.no_grad():
        with policy.reference():
            close(policy.logprobs(batch, temperature=T).logprobs, base)
        moved = policy.logprobs(batch, temperature=T).logprobs
    assert (moved - base).abs().max() > 0.1


def test_a_new_adapter_is_the_base(make_policy, base_model, batch, row_by_row):
    policy = make_policy(start=True)
    base, _ = row_by_row(base_model(), batch)
    close(policy.logprobs(batch).logprobs, base)


def test_columns_without_a_completion_token_are_0(make_policy, batch):
    got = make_policy().logprobs(batch)
    assert (got.logprobs[~batch.completion_mask] == 0).all()
    assert (got.entropy[~batch.completion_mask] == 0).all()
    assert (got.logprobs[batch.completion_mask] < 0).all()


def test_only_the_adapter_is_trained(make_policy):
    policy = make_policy()
    assert policy.weights_dirname == "adapter"
    trained = {id(p) for p in policy.model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in policy.parameters()}
    assert policy.lora_modules == 14  # seven linear layers in each of two blocks


def test_the_adapter_is_a_copy(make_policy):
    policy = make_policy()
    before = policy.adapter()
    assert {tensor.dtype for tensor in before.values()} == {torch.float32}
    assert len(before) == len(policy.parameters()) == 2 * policy.lora_modules
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(1)
    policy.copy_masters_to_model()  # nothing to copy: the model computes with the parameters
    after = policy.adapter()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor + 1)


def test_save_and_load(make_policy, batch, tmp_path):
    policy = make_policy(double=False)
    policy.save(tmp_path)
    other = make_policy(double=False, start=True)
    other.load(tmp_path)
    torch.testing.assert_close(
        other.logprobs(batch).logprobs, policy.logprobs(batch).logprobs, rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="r=4"):
        make_policy(double=False, lora_r=4).load(tmp_path)
    again = make_policy(double=False, start=True, adapter=tmp_path, lora_r=4)
    assert again.parameters()[0].shape == policy.parameters()[0].shape


@pytest.mark.model
def test_bundled_model_in_float32(bundled_path, group_of, batch_of, row_by_row):
    from envs.browser.prompts import ACTION
    from grpo.model.loading import load_model

    model, tokenizer = load_model(str(bundled_path), device="cpu", dtype=torch.float32)
    policy = LoRAPolicy(model, tokenizer)
    for p in policy.parameters():
        p.data += 0.02 * torch.sin(torch.arange(p.numel())).view_as(p)
    assert policy.forward_mode == "tree"

    def chat(page):
        messages = list(ACTION.messages("Click the button.", page, (), ""))
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    def completion(text):
        return [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]

    one, two = chat("[13] button 'Go'"), chat("[57] button 'Stop'")
    batch = batch_of(
        [
            group_of((1, (one, completion("click('13')"))), (0, (one, completion("click('9')")))),
            group_of((1, (two, completion("click('57')"))), (0, (two, completion("noop()")))),
        ]
    )
    with torch.no_grad():
        expected, entropy = row_by_row(policy.model, batch, T)
        for forward in ("tree", "padded"):
            policy.forward_mode = forward
            got = policy.logprobs(batch, temperature=T)
            close(got.logprobs, expected, 1e-4)
            close(got.entropy, entropy, 1e-4)
