"""CUDA graphs of the tree's passes: what a CPU can check, and on a GPU the graphs themselves."""

import copy
import warnings

import pytest
import torch

from grpo.model.forward import TreeLayout, tree_hidden
from grpo.model.graphs import PaddedLayout, TreeGraphs, TreeInput
from grpo.model.head import find_decoder
from grpo.model.lora_policy import LoRAPolicy
from grpo.tree.layers import prepare, tree_forward
from grpo.tree.token_tree import build_tree
from tests.support.models import make_model, make_tokenizer
from tests.support.workloads import Workload

ROWS = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 7], [8], [8, 9, 10]]
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs: runs on a machine with an NVIDIA GPU"
)


@pytest.fixture(params=["llama", "lfm2"])
def model(request):
    return make_model(request.param).to("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("size", [13, 20])
def test_padding_changes_no_value_and_no_gradient(model, size):
    decoder, tree = find_decoder(model), build_tree(ROWS)
    width = prepare(decoder)
    expected = tree_hidden(decoder, tree, width)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    gradient = gradient.to(expected)
    wanted = torch.autograd.grad(expected, decoder.parameters(), gradient)

    inputs = TreeInput(size, width, model.device)
    inputs.fill(build_tree([[5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6]]))  # as a tree before
    inputs.fill(tree)
    layout = PaddedLayout(inputs.ends, inputs.ancestors, decoder.dtype)
    hidden = tree_forward(decoder, inputs.tokens, inputs.depths, layout)

    torch.testing.assert_close(hidden[: len(tree)], expected, atol=1e-5, rtol=1e-4)
    padded = torch.cat([gradient, gradient.new_zeros(size - len(tree), gradient.shape[1])])
    found = torch.autograd.grad(hidden, decoder.parameters(), padded)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_padding_is_finite_without_any_node():
    inputs = TreeInput(4, 3, torch.device("cpu"))
    inputs.fill(build_tree([]))
    layout = PaddedLayout(inputs.ends, inputs.ancestors, torch.float32)
    assert layout.chunks[0].mask.isfinite().float().equal(torch.eye(4))
    assert inputs.ancestors.equal(torch.full((4, 3), 4))


def test_a_cpu_has_no_graphs():
    if not torch.cuda.is_available():
        assert LoRAPolicy(make_model("llama"), make_tokenizer()).graphs is None


@pytest.fixture
def policies(model):
    """Two policies of the same weights: by graphs, and one kernel after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = [
            LoRAPolicy(copy.deepcopy(model), make_tokenizer(), cuda_graphs=graphs)
            for graphs in (True, False)
        ]
    random = torch.Generator().manual_seed(1)
    for pair in zip(*(policy.parameters() for policy in both), strict=True):
        noise = 0.05 * torch.randn(pair[0].shape, generator=random)
        for parameter in pair:
            parameter.data += noise.to(parameter.device)
    return both


def backward(policy, *batches):
    for parameter in policy.parameters():
        parameter.grad = None
    for batch in batches:
        policy.logprobs(batch).logprobs.sum().backward()
    return [parameter.grad for parameter in policy.parameters()]


@needs_gpu
def test_values_and_gradients_of_graphs(policies):
    graphed, eager = policies
    batches = [
        Workload(groups=n, prompt=20, shared_prefix=8, completion=4).batch(16, seed=n)
        for n in (1, 3, 2, 3)
    ]
    for batch in batches:
        with torch.no_grad():
            torch.testing.assert_close(graphed.logprobs(batch), eager.logprobs(batch))
            with graphed.reference(), eager.reference():
                torch.testing.assert_close(graphed.logprobs(batch), eager.logprobs(batch))
    for one, other in zip(backward(graphed, *batches), backward(eager, *batches), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@needs_gpu
def test_graphs_read_the_weights_of_now(policies):
    graphed, eager = policies
    batch = Workload(groups=1, prompt=20, shared_prefix=8, completion=4).batch(16)
    before = graphed.logprobs(batch).logprobs.detach().clone()
    for policy in policies:
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(2)
    after = graphed.logprobs(batch).logprobs
    torch.testing.assert_close(after, eager.logprobs(batch).logprobs)
    assert not torch.allclose(after, before, atol=1e-3)


@needs_gpu
def test_a_backward_pass_after_another_forward_pass_is_refused(policies):
    batch = Workload(groups=1, prompt=20, shared_prefix=8, completion=4).batch(16)
    first = policies[0].logprobs(batch).logprobs
    policies[0].logprobs(batch)
    with pytest.raises(RuntimeError, match="must follow its own forward pass"):
        first.sum().backward()


@needs_gpu
def test_a_model_that_cannot_be_captured_runs_without_graphs(model):
    decoder, tree = find_decoder(model), build_tree(ROWS)
    width = prepare(decoder)
    expected = tree_hidden(decoder, tree, width)
    decoder.register_forward_hook(lambda *_: torch.cuda.synchronize())
    with pytest.warns(UserWarning, match="cannot be captured as a CUDA graph"):
        assert TreeGraphs(decoder, width).hidden(tree) is None
    torch.testing.assert_close(tree_hidden(decoder, tree, width), expected)


def test_the_layout_of_the_padded_tree_is_that_of_the_tree():
    tree, device = build_tree(ROWS), torch.device("cpu")
    inputs = TreeInput(len(tree), 2, device)
    inputs.fill(tree)
    padded, plain = (
        PaddedLayout(inputs.ends, inputs.ancestors, torch.float32),
        TreeLayout(tree, 2, device),
    )
    (chunk,) = plain.chunks
    assert padded.chunks[0].mask.isfinite().equal(chunk.mask)
    assert padded.ancestors.equal(plain.ancestors)
