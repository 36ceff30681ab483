"""The kernels of the tree's attention compute the same, and the saved choice decides."""

import json
import logging
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from grpo.config import Config
from grpo.distributed import World
from grpo.model import forward
from grpo.model.graphs import PaddedLayout
from grpo.model.lora_policy import LoRAPolicy
from grpo.training.updater import Updater
from grpo.tree import attention, kernel_choice
from grpo.tree.attention import flex, sdpa
from grpo.tree.block_mask import block_mask
from grpo.tree.chunks import cut_chunks
from grpo.tree.kernel_choice import Heads, choices_file, least_nodes_for_flex, save_choice
from grpo.tree.token_tree import build_tree
from tests.support.models import make_model, make_tokenizer, to_float64
from tests.support.workloads import Workload

CPU = torch.device("cpu")
HEADS = Heads(torch.device("cuda", 0), torch.bfloat16, 9, 3, 64, 64)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="compiled kernels: runs on a machine with an NVIDIA GPU"
)


@pytest.fixture
def gradients_on_cpu(monkeypatch):
    """Let flex_attention's unfused form compute gradients on the CPU, which torch refuses."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


def make_tree(*, prompt=300, pages=3, size=4):
    """Make a tree whose prompts are longer than two blocks, so that some blocks are all seen."""
    rows = Workload(
        groups=pages, group_size=size, prompt=prompt, shared_prefix=prompt - 20, completion=9
    )
    return build_tree(rows.batch(50).rows())


def tensors(tree, first, dtype, device=CPU):
    random = torch.Generator().manual_seed(0)
    shapes = (6, len(tree) - first, 16), (2, len(tree), 16), (2, len(tree), 24)  # H is 3 H_kv
    return [
        torch.randn(1, *shape, generator=random, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for shape in shapes
    ]


def both_kernels(tree, first, dtype, device=CPU):
    """Return each kernel's values, and its gradients of a random sum of them."""
    chunks = cut_chunks(tree.attention, first, len(tree), device)
    mask = block_mask(tree.ends, first, device)
    results = []
    for kernel, where in ((sdpa, chunks), (flex, mask)):
        inputs = tensors(tree, first, dtype, device)
        output = kernel(*inputs, where, 0.3)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((output * weights.to(output)).sum(), inputs)
        results.append([output.detach(), *gradients])
    return results


@pytest.mark.usefixtures("gradients_on_cpu")
@pytest.mark.parametrize("first", [0, 130])
def test_both_kernels_give_the_same_values_and_gradients(first):
    for one, other in zip(*both_kernels(make_tree(), first, torch.float64), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("first", [0, 5, 128])
def test_the_block_mask_is_that_of_the_dense_mask(first):
    tree = make_tree()
    keys = torch.arange(len(tree))

    def sees(batch, head, query, key):
        return (key <= query + first) & (query + first < tree.ends[key])

    lengths = len(tree) - first, len(tree)
    expected = torch_flex.create_block_mask(sees, None, None, *lengths, device="cpu")
    mask = block_mask(tree.ends, first, CPU)
    assert torch.equal(mask.to_dense(), expected.to_dense())
    assert torch.equal(mask.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert mask.full_kv_num_blocks.sum() > 0
    queries = keys[: lengths[0], None]
    assert torch.equal(mask.mask_mod(0, 0, queries, keys), sees(0, 0, queries, keys))
    for counts, order in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
        ("full_q_num_blocks", "full_q_indices"),
    ):
        assert torch.equal(getattr(mask, counts), getattr(expected, counts))
        for row, other, n in zip(
            *(getattr(m, order)[0, 0] for m in (mask, expected)),
            getattr(mask, counts)[0, 0],
            strict=True,
        ):
            assert row[:n].tolist() == other[:n].tolist()


def test_trees_of_all_sizes_share_their_compiled_code(monkeypatch):
    """Of flex_attention: one for whole trees, one for those whose prefix was computed before."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    attention._compiled.cache_clear()
    compiled = attention._compiled()
    attention._compiled.cache_clear()
    for first, pages in ((0, 1), (0, 2), (256, 3), (130, 5), (0, 6)):
        tree = make_tree(pages=pages)
        mask = block_mask(tree.ends, first, CPU)
        inputs = [x.detach() for x in tensors(tree, first, torch.float32)]
        compiled(*inputs, block_mask=mask, scale=None, enable_gqa=True)
    assert 1 <= counter.frame_count <= 2


@needs_gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3e-5), (torch.bfloat16, 6e-2)])
def test_the_compiled_kernel(dtype, most):
    tree, device = make_tree(pages=40), torch.device("cuda", 0)
    for first in (0, 130):
        for one, other in zip(*both_kernels(tree, first, dtype, device), strict=True):
            assert (one - other).double().norm() <= most * other.double().norm()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache of the user, and a GPU's name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Big GPU")
    least_nodes_for_flex.cache_clear()
    yield tmp_path / "grpo-browser" / "attention.json"
    least_nodes_for_flex.cache_clear()


def test_a_choice_is_read_back_and_said_once(cache, caplog):
    caplog.set_level(logging.INFO)
    assert least_nodes_for_flex(HEADS) is None
    save_choice(HEADS, 4096)
    other = HEADS._replace(width=128)
    save_choice(other, None)
    assert choices_file() == cache
    assert [least_nodes_for_flex(HEADS) for _ in range(2)] == [4096, 4096]
    assert least_nodes_for_flex(other) is None
    assert least_nodes_for_flex(HEADS._replace(dtype=torch.float16)) is None
    assert [r.message for r in caplog.records] == [
        "attention: flex_attention from 4096 nodes of a tree on (grpo doctor)"
    ]
    name = f"Big GPU, torch {torch.__version__}, bfloat16, 9 heads, 3 of keys, 64 and 64 wide"
    assert json.loads(cache.read_text()) == {name: 4096, other.name: None}


def test_a_cpu_has_no_choice(cache):
    save_choice(HEADS, 1)
    assert least_nodes_for_flex(HEADS._replace(device=CPU)) is None


@pytest.mark.parametrize("text", ["", "[1]", "{", b"\xff", '{"NAME": "4096"}', '{"NAME": true}'])
def test_a_file_that_holds_something_else_is_no_choice(cache, text):
    cache.parent.mkdir()
    text = text if isinstance(text, bytes) else text.replace("NAME", HEADS.name).encode()
    cache.write_bytes(text)
    assert least_nodes_for_flex(HEADS) is None
    save_choice(HEADS, 100)  # and is replaced
    assert least_nodes_for_flex(HEADS) == 100


@pytest.mark.usefixtures("gradients_on_cpu")
def test_an_update_by_flex_attention_is_that_by_sdpa(monkeypatch):
    """Of several micro-batches with a shared prefix, with recomputed layers and without."""
    policy = LoRAPolicy(to_float64(make_model("lfm2")), make_tokenizer())
    random = torch.Generator().manual_seed(1)
    for p in policy.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=random)
    rows = Workload(groups=2, group_size=4, prompt=40, shared_prefix=20, completion=8)
    batch = rows.batch(16)
    updater = Updater(Config(max_tokens_per_microbatch=90), policy, World.single())
    used = []

    def spy(*arguments):
        used.append(arguments[0].shape[2])
        return flex(*arguments)

    monkeypatch.setattr("grpo.tree.layers.flex", spy)
    found = []
    for least in (None, 60):
        monkeypatch.setattr(forward, "least_nodes_for_flex", lambda heads, least=least: least)
        for policy.activation_checkpointing in (False, True):
            assert len(updater.accumulate(batch)) > 1
            gradients = [p.grad.clone() for p in policy.parameters()]
            found.append([updater.logprobs(batch), *gradients])
        assert bool(used) == (least is not None)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


def test_small_trees_and_graphs_use_sdpa(monkeypatch):
    tree = make_tree(pages=1)
    heads = HEADS._replace(device=CPU)
    for least, used in ((len(tree), True), (len(tree) + 1, False)):
        monkeypatch.setattr(forward, "least_nodes_for_flex", lambda heads, least=least: least)
        layout = forward.TreeLayout(tree, 0, CPU)
        assert (layout.block_mask(heads) is not None) == used
    monkeypatch.setattr(forward, "least_nodes_for_flex", lambda heads: 1)
    graphed = PaddedLayout(tree.ends, tree.ancestors(0), torch.float32)
    assert graphed.block_mask(heads) is None


def test_the_file_is_read_once_per_process(cache):
    """A run computes all its updates by one kernel, whoever measures meanwhile."""
    save_choice(HEADS, 100)
    assert least_nodes_for_flex(HEADS) == 100
    cache.unlink()
    assert least_nodes_for_flex(HEADS) == 100
    assert kernel_choice.read_choices() == {}
