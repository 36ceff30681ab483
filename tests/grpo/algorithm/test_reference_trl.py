"""Comparison of values and gradients with TRL's own code.

TRL's methods are called unchanged, on a stub of its trainer that supplies log-probabilities,
rewards and settings in place of a model, a tokenizer and a data set.
"""

import collections
import itertools
from types import SimpleNamespace

import pytest
import torch

from grpo.algorithm.advantages import group_advantages, zero_std_fraction
from grpo.algorithm.losses import mean_stats, policy_loss, token_weights

trl = pytest.importorskip("trl", reason="the reference needs TRL: pip install trl==1.16.0")
pytestmark = pytest.mark.reference

EPSILONS = {"epsilon_low": 0.15, "epsilon_high": 0.25}
LIMIT = 9  # max_completion_length


def batch_of(n=12, t=7, seed=0):
    """Make prefix masks as TRL does, no row empty, with ratios on both sides of every clip."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    old = -normal(n, t).abs() - 0.1
    return {
        "logprobs": old + 0.5 * normal(n, t),
        "advantages": normal(n),
        "mask": torch.arange(t) < torch.randint(1, t + 1, (n, 1), generator=g),
        "old_logprobs": old,
        "ref_logprobs": old + 0.5 * normal(n, t),
        "importance_weights": (0.3 * normal(n, t)).exp().clamp(max=1.5),
    }


def identity(x, *_, **__):
    return x


def accelerator():
    return SimpleNamespace(
        num_processes=1,
        process_index=0,
        device=torch.device("cpu"),
        gather=identity,
        reduce=identity,
    )


def trl_loss(batch, *, loss_type, delta=None, beta=0.0, unbiased_kl=False, on_policy=False):
    """Run `GRPOTrainer._compute_loss`; return loss, gradient by logprobs, and metrics."""
    logprobs = batch["logprobs"].clone().requires_grad_()
    mask = batch["mask"].double()
    n, t = mask.shape
    sequence = loss_type == "gspo"
    metrics = {"train": collections.defaultdict(list)}
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros(n, t), None),
        _entropy_bonus_enabled=False,
        _metrics=metrics,
        accelerator=accelerator(),
        args=SimpleNamespace(
            delta=delta, use_bias_correction_kl=unbiased_kl, steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        # CISPO's cap is epsilon_high itself in TRL and 1 + epsilon_high in MiniMax-M1 and here.
        epsilon_high=EPSILONS["epsilon_high"] + (loss_type == "cispo"),
        epsilon_low=EPSILONS["epsilon_low"],
        importance_sampling_level="sequence" if sequence else "token",
        loss_type="grpo" if sequence else loss_type,
        max_completion_length=LIMIT,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm="importance_weights" in batch,
        vllm_importance_sampling_correction=True,
    )
    inputs = {
        "prompt_ids": torch.zeros(n, 1, dtype=torch.long),
        "prompt_mask": torch.ones(n, 1),
        "completion_ids": torch.zeros(n, t, dtype=torch.long),
        "completion_mask": mask,
        "advantages": batch["advantages"],
        "old_per_token_logps": None if on_policy else batch["old_logprobs"],
        "ref_per_token_logps": batch["ref_logprobs"],
        "importance_sampling_ratio": batch.get("importance_weights"),
        "num_items_in_batch": mask.sum(),
    }
    loss = trl.GRPOTrainer._compute_loss(stub, None, inputs)
    (grad,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), grad, {name: values[-1] for name, values in metrics["train"].items()}


def our_loss(batch, aggregation, *, on_policy=False, **options):
    leaf = batch["logprobs"].clone().requires_grad_()
    weights = token_weights(
        batch["mask"], aggregation, max_completion_length=LIMIT, dtype=torch.float64
    )
    old = {"old_logprobs": None} if on_policy else {}
    inputs = {**batch, "logprobs": leaf, "weights": weights, **old}
    loss, stats = policy_loss(**inputs, **EPSILONS, **options)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad, mean_stats([stats])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


# TRL's loss_type, and our loss, aggregation and delta.
LOSSES = [
    ("grpo", "grpo", "grpo", None),
    ("grpo", "grpo", "grpo", 1.5),
    ("bnpo", "grpo", "bnpo", None),
    ("dr_grpo", "grpo", "dr_grpo", None),
    ("dr_grpo", "grpo", "dr_grpo", 1.5),
    ("dapo", "grpo", "dapo", None),
    ("dapo", "grpo", "dapo", 1.5),
    ("gspo", "gspo", "grpo", None),
    ("cispo", "cispo", "dapo", None),
]
KLS = [(0.0, "k3"), (0.3, "k3"), (0.3, "unbiased")]
# With GSPO, TRL's unbiased KL uses the sequence's ratio, which is not unbiased; ours uses the
# token's, so the two differ on purpose.
CASES = [(*loss, *kl) for loss in LOSSES for kl in KLS if (loss[0], kl[1]) != ("gspo", "unbiased")]


@pytest.mark.parametrize("with_importance", [False, True])
@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize(("loss_type", "loss", "aggregation", "delta", "beta", "kl"), CASES)
def test_loss(loss_type, loss, aggregation, delta, beta, kl, on_policy, with_importance):
    batch = batch_of()
    if not with_importance:
        del batch["importance_weights"]
    expected, expected_grad, metrics = trl_loss(
        batch,
        loss_type=loss_type,
        delta=delta,
        beta=beta,
        unbiased_kl=kl == "unbiased",
        on_policy=on_policy,
    )
    got, grad, stats = our_loss(
        batch, aggregation, loss=loss, delta=delta, beta=beta, kl=kl, on_policy=on_policy
    )
    assert expected_grad.abs().max() > 1e-3
    close(got, expected)
    close(grad, expected_grad)
    if beta and kl == "k3":
        assert stats["kl"] == pytest.approx(metrics["kl"], rel=1e-11)
    if loss == "grpo":
        # TRL computes the rate in float32, after the dual clip; the tokens are the same.
        for side in ("low", "high"):
            assert stats[f"clip_ratio/{side}"] == pytest.approx(metrics[f"clip_ratio/{side}_mean"])
            assert on_policy == (stats[f"clip_ratio/{side}"] == 0)


def test_micro_batches_add_up_to_trls_whole_batch():
    batch = batch_of()
    weights = token_weights(batch["mask"], "dapo", dtype=torch.float64)
    expected, _, _ = trl_loss(batch, loss_type="dapo", beta=0.3)
    batch["weights"] = weights
    parts = [
        policy_loss(**{k: v[rows] for k, v in batch.items()}, **EPSILONS, beta=0.3)[0]
        for rows in torch.arange(12).split([5, 1, 6])
    ]
    close(sum(parts), expected)


def trl_advantages(trainer, rewards, group_size, **settings):
    """Run `_generate_and_score_completions`; return advantages and the fraction of equal groups."""
    n = len(rewards)
    ids = [[1, 2]] * n
    metrics = {"train": collections.defaultdict(list)}
    generated = {
        trl.GRPOTrainer: (ids, ids, None, ["x"] * n, None, {}, None, None),
        trl.RLOOTrainer: (ids, ids, ["x"] * n),
    }
    stub = SimpleNamespace(
        _calculate_rewards=lambda *_: rewards.unsqueeze(1),
        _generate=lambda _: generated[trainer],
        _get_per_token_logps_and_entropies=lambda *_, **__: (torch.zeros(n, 2), None, None),
        _logs=collections.defaultdict(list, rewards={"r": []}),
        _metrics=metrics,
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=0),
        accelerator=accelerator(),
        args=SimpleNamespace(
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=n,
            steps_per_generation=1,
        ),
        beta=0.0,
        environment_factories=None,
        environments=None,
        mask_truncated_completions=False,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        num_generations=group_size,
        num_iterations=1,
        pad_to_multiple_of=None,
        reward_func_names=["r"],
        reward_weights=torch.ones(1, dtype=rewards.dtype),
        tools=None,
        use_vllm=False,
        **settings,
    )
    output = trainer._generate_and_score_completions(stub, [{"prompt": "p"}] * n)
    return output["advantages"], metrics["train"]["frac_reward_zero_std"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("group_size", "rule"), list(itertools.product([2, 4, 8], ["group", "batch", "none", "rloo"]))
)
def test_advantages(group_size, rule, dtype):
    g = torch.Generator().manual_seed(group_size)
    rewards = torch.rand(24, generator=g, dtype=dtype)
    rewards[8:16] = rewards[8:16].round()
    rewards[16:] = 0.5
    if rule == "rloo":
        expected, equal = trl_advantages(
            trl.RLOOTrainer, rewards, group_size, normalize_advantages=False, reward_clip_range=None
        )
        options = {"scale": "none", "baseline": "leave_one_out"}
    else:
        expected, equal = trl_advantages(
            trl.GRPOTrainer,
            rewards,
            group_size,
            scale_rewards=rule,
            multi_objective_aggregation="sum_then_normalize",
        )
        options = {"scale": rule}
    groups = torch.arange(24) // group_size
    got = group_advantages(rewards, groups, **options)
    assert expected.abs().max() > 0.1
    # TRL computes n / (n - 1) in float32 even for a float64 standard deviation.
    tolerance = 2e-5 if dtype == torch.float32 else 1e-7 if rule in ("group", "batch") else 1e-12
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    if rule != "batch":  # where TRL reports whether the batch's deviation is 0
        assert zero_std_fraction(rewards, groups) == pytest.approx(equal)
