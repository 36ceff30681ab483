"""LFM2: its linear layers have other names than Llama's, and some layers are convolutions."""

import json

import pytest
import torch
from safetensors import safe_open

from grpo.config import Config
from grpo.distributed import World
from grpo.model.lora_policy import LoRAPolicy
from grpo.training.updater import Updater
from tests.support.models import LFM2_350M, make_lfm2
from tests.support.workloads import Workload

FEED_FORWARD = [f"feed_forward.{name}" for name in ("w1", "w2", "w3")]
ATTENTION = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
CONVOLUTION = ["conv.in_proj", "conv.out_proj"]
LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def linears(policy):
    """Return the names of the adapter's tensors: of every linear layer but the head."""
    return {
        f"base_model.model.model.layers.{n}.{name}.lora_{part}.weight"
        for n, kind in enumerate(policy.model.config.layer_types)
        for name in FEED_FORWARD + (CONVOLUTION if kind == "conv" else ATTENTION)
        for part in "AB"
    }


def check_files(policy, folder):
    """Check that an adapter's folder is as PEFT's are, and holds what the policy has."""
    adapter = policy.adapter()
    assert set(adapter) == linears(policy)
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == set(adapter)
        assert all(torch.equal(file.get_tensor(name), adapter[name]) for name in adapter)
    config = json.loads((folder / "adapter_config.json").read_text())
    names = [name.rpartition(".")[2] for name in FEED_FORWARD + CONVOLUTION + ATTENTION]
    assert config["target_modules"] == sorted(set(names))
    assert (config["r"], config["lora_alpha"]) == (8, 16)


BONUS = {"valid_action_bonus": 0.5, "beta": 0.05, "group_size": 16}


async def test_every_linear_layer_is_adapted_trained_and_saved(
    make_policy, make_trainer, batch, tmp_path
):
    policy = make_policy("lfm2", double=False, start=True)
    start = policy.adapter()
    base = policy.logprobs(batch).logprobs.detach()
    trainer = make_trainer(policy=policy, steps=3, **BONUS)
    steps = [step async for step in trainer.train()]
    assert policy.version == len(steps) == 3
    moved = {n for n, tensor in policy.adapter().items() if not torch.equal(tensor, start[n])}
    assert moved == linears(policy)
    trained = policy.logprobs(batch).logprobs
    assert (trained - base).abs().max() > 0.01
    with policy.reference():
        assert torch.equal(policy.logprobs(batch).logprobs, base)

    policy.save(tmp_path)
    check_files(policy, tmp_path)
    for other in (
        make_policy("lfm2", double=False, start=True, seed=1),
        make_policy("lfm2", double=False, start=True, adapter=tmp_path),
    ):
        other.load(tmp_path)
        assert torch.equal(other.logprobs(batch).logprobs, trained)


def test_the_names_of_other_models_are_rejected(base_model, tokenizer):
    with pytest.raises(ValueError, match="match no") as error:
        LoRAPolicy(base_model("lfm2"), tokenizer, lora_target_modules=LLAMA)
    assert str(error.value) == (
        "target_modules ['o_proj', 'gate_proj', 'up_proj', 'down_proj'] match no nn.Linear; there "
        "are: in_proj, k_proj, lm_head, out_proj, q_proj, v_proj, w1, w2, w3"
    )


def test_an_update_of_the_real_shape(tokenizer, tmp_path):
    """LFM2-350M with random weights in bfloat16: about 2 GB; making it takes most of the time."""
    model = make_lfm2(LFM2_350M, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == 354_483_968
    policy = LoRAPolicy(model, tokenizer)
    assert policy.forward_mode == "tree"
    assert policy.lora_modules == 16 * 3 + 10 * 2 + 6 * 4
    assert sum(p.numel() for p in policy.parameters()) == 2_998_272

    rows = Workload(groups=2, group_size=2, prompt=24, shared_prefix=12, completion=4)
    start = policy.adapter()
    metrics = Updater(Config(warmup_steps=0), policy, World.single()).update(rows.batch(65536))
    assert metrics["update/skipped"] == 0
    assert metrics["kl"] == 0
    assert 10 < metrics["update/entropy"] < 11.1  # of 65,536 tokens: at most log of it, 11.09
    after = policy.adapter()
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert moved == {name for name in after if ".lora_B." in name}  # A's gradient is B's multiple

    policy.save(tmp_path)
    check_files(policy, tmp_path)
    policy.load(tmp_path)
