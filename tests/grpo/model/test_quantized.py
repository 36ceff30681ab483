"""A policy on a quantised base: update, generator, reference, files, and what is refused."""

import copy
import importlib.util
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

from grpo.config import Config
from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import check_sync
from grpo.model.loading import load_model, load_policy
from grpo.model.lora_policy import LoRAPolicy, quantize_base
from grpo.training.checkpoint import FORMAT, config_mismatch, load_checkpoint, save_checkpoint
from lora.quantized import LoRAQuantizedLinear, QuantizedLinear, QuantizedWeight
from tests.support.fake_device import DEVICE, FakeDevice
from tests.support.models import make_model, round_weights
from tests.support.zoo import make

pytest.importorskip("bitsandbytes", reason="needs the extra 'quantized'")

FAMILIES = {"llama": "tree", "lfm2": "tree", "mistral": "padded"}


def quantized(family="llama", quantize="4bit", dtype=torch.float32):
    model = round_weights(make_model(family), dtype)
    quantize_base(model, quantize)
    return model


def plain(family, quantize, dtype):
    """A plain model that holds the dequantised matrices."""
    model = round_weights(make_model(family), dtype)
    for name, layer in quantized(family, quantize, dtype).named_modules():
        if isinstance(layer, QuantizedLinear):
            model.get_submodule(name).weight = nn.Parameter(layer.weight)
    return model


def distance(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


async def run(trainer):
    async for _ in trainer.train():
        pass


@pytest.fixture
def policies(tokenizer, perturb):
    """A function that makes a policy on a quantised base, and one on the plain twin of that."""

    def make(family="llama", quantize="4bit", dtype=torch.float32, **options):
        pair = []
        for model in (quantized(family, quantize, dtype), plain(family, quantize, dtype)):
            pair.append(LoRAPolicy(model, tokenizer, **options))
            perturb(pair[-1])
        return pair

    return make


@pytest.mark.filterwarnings("ignore:MistralForCausalLM")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
# In bfloat16 both compute with the same bfloat16 matrices and in the same order; a base product
# rounded otherwise would differ by 2^-9 per layer.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3)])
def test_the_update_is_that_of_the_dequantised_base(
    policies, batch, gradient, family, quantize, dtype, bound
):
    ours, plain = policies(family, quantize, dtype)
    assert ours.forward_mode == plain.forward_mode == FAMILIES[family]
    got, expected = (policy.logprobs(batch).logprobs for policy in (ours, plain))
    assert distance(got, expected) < bound
    assert distance(gradient(ours, got.sum()), gradient(plain, expected.sum())) < bound


def test_layers_are_recomputed(policies, batch, gradient):
    one, other = policies()[0], policies(activation_checkpointing=True)[0]
    got, expected = (gradient(p, p.logprobs(batch).logprobs.sum()) for p in (one, other))
    torch.testing.assert_close(got, expected)


def test_the_reference_is_the_quantised_base(policies, batch, base_model, row_by_row):
    ours, plain = policies()
    with torch.no_grad(), ours.reference(), plain.reference():
        got, expected = (policy.logprobs(batch).logprobs for policy in (ours, plain))
    assert torch.equal(got, expected)
    original = row_by_row(base_model(dtype=torch.float32), batch)[0]
    assert (got - original).abs().max() > 0.01
    assert (got - ours.logprobs(batch).logprobs).abs().max() > 0.01


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
async def test_the_generator_samples_from_the_quantised_base(policies, quantize, dtype, gap):
    policy, _ = policies("lfm2", quantize, dtype)
    report = await check_sync(policy, LocalGenerator(policy))
    assert report.gap < gap
    assert report.changed_gap < gap


class Elsewhere(LocalGenerator):
    """Samples from a plain model, which is given what `sync` names, as vLLM is."""

    def __init__(self, policy, model, tokenizer, weights):
        super().__init__(LoRAPolicy(model, tokenizer), max_new_tokens=8)
        self.trained, self.weights = policy, weights

    async def sync(self):
        own = self.policy.model
        own.load_state_dict(self.weights(self.trained), strict=False)
        self.policy.version += 1  # or it would keep its cache


async def test_merged_weights_are_the_policy_elsewhere_and_an_adapter_is_not(policies, tokenizer):
    def adapter(policy):
        return {n: p for n, p in policy.model.state_dict().items() if "lora_" in n}

    policy, _ = policies()
    merged = Elsewhere(policy, make_model("llama"), tokenizer, lambda p: dict(p.merged()))
    assert (await check_sync(policy, merged)).changed_gap < 1e-4
    with pytest.raises(GeneratorError, match="does not compute the same model"):
        await check_sync(policy, Elsewhere(policy, make_model("llama"), tokenizer, adapter))


def test_on_a_device(tokenizer, batch):
    """On a pretended GPU: what it computes, and how often the host waits for it."""

    def make(where, quantize="none"):
        model = make_model("lfm2")
        if quantize != "none":
            quantize_base(model, quantize, where)
        return LoRAPolicy(model.to(where), tokenizer, cuda_graphs=False)

    with FakeDevice() as device:
        here, there, plain = make("cpu", "4bit"), make(DEVICE, "4bit"), make(DEVICE)
        expected, got = (p.logprobs(batch).logprobs for p in (here, there))
        assert got.device == DEVICE
        torch.testing.assert_close(got.cpu(), expected)
        for result in (expected, got):
            result.sum().backward()
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(q.grad.cpu(), p.grad)
        waits = [device.count(lambda p=p: p.logprobs(batch))[0] for p in (there, plain)]
        assert waits[0] == waits[1]


def test_saved_adapters_and_checkpoints(policies, perturb, tokenizer, batch, tmp_path):
    policy, twin = policies("lfm2")
    policy.save(tmp_path / "adapter")
    twin.save(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "adapter" / file.name).read_bytes()
    config = Config(output=str(tmp_path), quantize="4bit")
    save_checkpoint(config, 3, policy, {"step": 3})
    again = LoRAPolicy(quantized("lfm2"), tokenizer, seed=7)
    assert load_checkpoint(config, again)["step"] == 3
    expected = policy.logprobs(batch).logprobs
    assert torch.equal(again.logprobs(batch).logprobs, expected)
    started = LoRAPolicy(quantized("lfm2"), tokenizer, adapter=tmp_path / "adapter")
    assert torch.equal(started.logprobs(batch).logprobs, expected)
    with pytest.raises(ConfigError, match="quantize was '4bit' and is '8bit'"):
        load_checkpoint(config.replace(quantize="8bit"), again)


def test_checkpoints_from_before_the_option():
    config, older = Config(), Config().model_dump(mode="json")
    del older["quantize"]
    manifest = {"format": FORMAT, "config": older}
    assert config_mismatch(manifest, config) == ""
    changed = config.replace(quantize="4bit")
    assert config_mismatch(manifest, changed).startswith("quantize was 'none' and is '4bit'. A run")


async def test_two_steps_and_two_more_are_four(make_trainer, tokenizer, tmp_path):
    def trainer(folder, **options):
        policy = LoRAPolicy(quantized(), tokenizer, seed=int(options.get("resume", 0)))
        run = {"policy": policy, "output": str(tmp_path / folder), "quantize": "4bit"}
        return make_trainer(group_size=64, **run, **options)  # one in a hundred episodes succeeds

    whole = trainer("whole", steps=4)
    base = copy.deepcopy([b for _, b in whole.policy.model.named_buffers()])
    await run(whole)
    assert all(map(torch.equal, base, whole.policy.model.buffers()))
    for options in ({"steps": 2}, {"steps": 4, "resume": True}):
        parts = trainer("parts", **options)
        await run(parts)
    for one, other in zip(whole.policy.parameters(), parts.policy.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0


def test_merged_weights_that_compute_something_else_are_refused(tokenizer, monkeypatch):
    wrong = property(lambda self: 1.01 * self.quantized.dequantize())
    monkeypatch.setattr(LoRAQuantizedLinear, "base_weight", wrong)
    with pytest.raises(ValueError, match=r"^the adapter does not fit LlamaForCausalLM: merged"):
        LoRAPolicy(quantized(), tokenizer)


# Loading.


@pytest.fixture
def folder(tokenizer, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(("quantize", "bits"), [("8bit", 8), ("4bit", 4)])
def test_loading(folder, batch, quantize, bits):
    options = {"model": str(folder), "device": "cpu", "lora_target_modules": "q_proj,v_proj"}
    options |= {"dtype": "bfloat16"}
    policy = load_policy(Config(quantize=quantize, **options))
    assert policy.model.dtype == torch.bfloat16
    weights = [m for m in policy.model.modules() if isinstance(m, QuantizedWeight)]
    assert {w.bits for w in weights} == {bits}
    assert len(weights) == 2 * 7
    assert policy.lora_modules == 4
    plain = load_policy(Config(**options))
    one, other = (p.logprobs(batch).logprobs for p in (policy, plain))
    assert 1e-3 < (one - other).abs().max() < 2
    names = {name for name, _ in plain.model.named_parameters() if "lora_" not in name}
    assert {name for name, _ in policy.merged()} == names | {"lm_head.weight"}


def test_bytes_of_a_loaded_model(folder):
    def load(quantize):
        options = {"device": "cpu", "dtype": torch.bfloat16, "quantize": quantize}
        model, _ = load_model(str(folder), **options)
        tensors = [*model.parameters(), *model.buffers()]
        return model, sum(t.numel() * t.element_size() for t in tensors)

    _, plain = load("none")
    for quantize, codes, bits in (("8bit", 256, 8.5), ("4bit", 16, 4.5)):
        model, size = load(quantize)
        layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
        numbers = sum(m.in_features * m.out_features for m in layers)
        assert size == plain - numbers * (16 - bits) / 8 + 4 * codes * len(layers)


def test_one_plain_weight_at_a_time(monkeypatch):
    model = make_model("llama")
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_head]
    weights = [weakref.ref(layer.weight) for layer in linears]
    del linears
    alive, quantize = [], QuantizedWeight.__init__

    def count(self, *arguments):
        alive.append(sum(weight() is not None for weight in weights))
        quantize(self, *arguments)

    monkeypatch.setattr(QuantizedWeight, "__init__", count)
    quantize_base(model, "4bit")
    assert alive == list(range(14, 0, -1))


def test_4_bits_are_those_of_transformers(folder):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=options, dtype=torch.bfloat16, device_map="cpu"
    )
    ours, _ = load_model(str(folder), device="cpu", dtype=torch.bfloat16, quantize="4bit")
    for name, layer in ours.named_modules():
        if isinstance(layer, QuantizedLinear):
            other = theirs.get_submodule(name).weight
            assert torch.equal(layer.quantized.packed, other.data), name
            assert torch.equal(
                layer.quantized._scales.view(torch.float32), other.quant_state.absmax
            )


def rejected(make):
    with pytest.raises(ConfigError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_options_that_do_not_fit():
    assert rejected(lambda: Config(quantize="4bit", train="full")) == (
        "quantize must be none with train=full, got 4bit: only frozen weights can be quantised"
    )
    for backend in ("vllm", "vllm-server"):
        for sync in ("auto", "adapter"):
            message = rejected(lambda: Config(quantize="8bit", backend=backend, vllm_sync=sync))  # noqa: B023
            assert message == (
                f"quantize=8bit with backend={backend} needs vllm_sync=merged, got {sync}: vLLM's "
                "own base is not quantised, so an adapter alone would not be the policy there"
            )
        assert Config(quantize="8bit", backend=backend, vllm_sync="merged").backend == backend
    assert rejected(lambda: Config(quantize="3bit")) == (
        "quantize must be one of none, 8bit, 4bit, got '3bit'"
    )
    assert "quantize" not in Config.resumable()


def test_the_library_is_imported_with_the_option_alone(folder):
    program = """
import sys
from grpo.config import Config
from grpo.model.loading import load_policy
for quantize in ("none", "4bit"):
    load_policy(Config(model=sys.argv[1], device="cpu", quantize=quantize))
    print(quantize, "bitsandbytes" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout == "none False\n4bit True\n"
    assert not done.stderr  # bitsandbytes warns of a kernel that is not used


def test_without_the_extra(folder, monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name: None if name == "bitsandbytes" else find(name)  # noqa: E731
    monkeypatch.setattr("grpo.model.loading.find_spec", hidden)
    assert rejected(lambda: load_policy(Config(model=str(folder), quantize="4bit"))) == (
        "quantize=4bit needs bitsandbytes: install the extra 'quantized'"
    )


def test_a_model_whose_weights_are_in_experts(tokenizer, tmp_path):
    make("mixtral").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = rejected(lambda: load_policy(Config(model=str(tmp_path), quantize="4bit")))
    assert message == (
        f"cannot load model '{tmp_path}': its weights cannot be quantised: 74% of them are outside "
        "linear layers, in model.layers.*.mlp.experts.gate_up_proj, "
        "model.layers.*.mlp.experts.down_proj"
    )
