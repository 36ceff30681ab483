import math

import pytest
import torch
from torch.autograd import gradcheck

from grpo.algorithm.losses import (
    cispo,
    clipped_surrogate,
    importance_weights,
    kl_estimate,
    log_ratio,
    mean_stats,
    policy_loss,
    token_weights,
)

CONFIGS = [
    {"loss": loss, "beta": beta, "kl": kl, "delta": delta}
    for loss, delta in [("grpo", None), ("grpo", 1.7), ("gspo", None), ("cispo", None)]
    for beta, kl in [(0.0, "k3"), (0.3, "k1"), (0.3, "k2"), (0.3, "k3"), (0.3, "unbiased")]
]
KINDS = ["k1", "k2", "k3", "unbiased"]


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_batch(n=6, t=5, seed=4):
    """Make rows of many lengths, one empty; every sign x clip case occurs (see below)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    lengths = torch.arange(n) % (t + 1)
    mask = torch.arange(t) < lengths.unsqueeze(1)
    old = -normal(n, t).abs() - 0.1
    return {
        "logprobs": old + 0.6 * normal(n, t),
        "advantages": normal(n),
        "mask": mask,
        "weights": token_weights(mask, "grpo", dtype=torch.float64),
        "old_logprobs": old,
        "ref_logprobs": old + 0.5 * normal(n, t),
        "importance_weights": (0.3 * normal(n, t)).exp(),
    }


def value_grad_stats(batch, **options):
    leaf = batch["logprobs"].clone().requires_grad_()
    loss, stats = policy_loss(**{**batch, "logprobs": leaf}, **options)
    assert loss.shape == ()
    assert not any(s.requires_grad or s.shape for s in stats.values())
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad, stats


def test_random_batch_has_every_sign_and_clip():
    batch = random_batch()
    mask = batch["mask"]
    ratio = (batch["logprobs"] - batch["old_logprobs"]).exp()[mask]
    advantages = batch["advantages"].unsqueeze(1).expand(6, 5)[mask]
    bounds = torch.tensor([0.8, 1.2, 1.7])
    good = torch.bucketize(ratio[advantages > 0], bounds)
    bad = torch.bucketize(ratio[advantages < 0], bounds)
    assert set(good.clamp(max=2).tolist()) == {0, 1, 2}
    assert set(bad.tolist()) == {0, 1, 2, 3}


# --- clipped surrogate -----------------------------------------------------------------------


# epsilon_low 0.2, epsilon_high 0.3, delta 2. The loss is -min(r A, clip(r) A). Its gradient by
# log r is -r A where r A is the minimum, and 0 where clip(r) A is.
@pytest.mark.parametrize(
    ("advantage", "ratio", "delta", "loss", "grad"),
    [
        (2.0, 0.5, None, -1.0, -1.0),  # below, good: min(0.5, 0.8) * 2, not clipped
        (2.0, 1.1, None, -2.2, -2.2),  # inside
        (2.0, 1.5, None, -2.6, 0.0),  # above, good: clipped to 1.3
        (2.0, 3.0, None, -2.6, 0.0),
        (-2.0, 0.5, None, 1.6, 0.0),  # below, bad: clipped to 0.8
        (-2.0, 0.9, None, 1.8, 1.8),  # inside
        (-2.0, 1.5, None, 3.0, 3.0),  # above, bad: max(1.5, 1.3) * 2, not clipped
        (-2.0, 3.0, None, 6.0, 6.0),  # far above, bad: unbounded
        (2.0, 0.5, 2.0, -1.0, -1.0),  # the dual clip changes the last case only
        (2.0, 1.1, 2.0, -2.2, -2.2),
        (2.0, 3.0, 2.0, -2.6, 0.0),
        (-2.0, 0.5, 2.0, 1.6, 0.0),
        (-2.0, 1.5, 2.0, 3.0, 3.0),
        (-2.0, 3.0, 2.0, 4.0, 0.0),  # far above, bad: 2 * 2
        (0.0, 3.0, None, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_sign_and_region(advantage, ratio, delta, loss, grad):
    log_r = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    got = clipped_surrogate(log_r, f64(advantage), 0.2, 0.3, delta)
    close(got.item(), loss)
    close(torch.autograd.grad(got.sum(), log_r)[0].item(), grad)


# cap 1 + 0.5; the loss is -min(r, 1.5) A log pi and its gradient -min(r, 1.5) A, never 0.
@pytest.mark.parametrize("log_r", [89.0, 100.0, 1e4, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("advantage", "delta", "loss"),
    [(2.0, None, -2.0 * 1.3), (2.0, 4.0, -2.0 * 1.3), (-2.0, 4.0, 2.0 * 4.0), (0.0, None, 0.0)],
)
def test_a_ratio_that_overflows_is_clipped_with_a_gradient_of_0(
    advantage, delta, loss, dtype, log_r
):
    """Not of NaN: 0, of the clip, times infinity, of exp. The token beside it keeps its own."""
    log_ratio = torch.tensor([[log_r, 0.0]], dtype=dtype, requires_grad=True)
    got = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=dtype), 0.2, 0.3, delta)
    (grad,) = torch.autograd.grad(got.sum(), log_ratio)
    assert got.tolist() == [[pytest.approx(loss, rel=1e-2), -advantage]]
    assert grad.tolist() == [[0.0, -advantage]]


def test_a_ratio_that_overflows_without_a_clip_is_an_infinite_loss():
    """Not a finite one with a gradient of 0: the update is to be left out."""
    log_ratio = torch.tensor([[100.0]], requires_grad=True)
    got = clipped_surrogate(log_ratio, torch.tensor([-1.0]), 0.2, 0.3)
    (grad,) = torch.autograd.grad(got.sum(), log_ratio)
    assert got.item() == grad.item() == math.inf


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize(("ratio", "weight"), [(0.1, 0.1), (1.0, 1.0), (1.4, 1.4), (9.0, 1.5)])
def test_cispo_by_sign_and_region(advantage, ratio, weight):
    logprobs = torch.full((1, 1), -0.7, dtype=torch.float64, requires_grad=True)
    log_r = log_ratio(
        logprobs, logprobs.detach() - math.log(ratio), torch.tensor([[True]]), "token"
    )
    got = cispo(log_r, logprobs, f64(advantage), 0.5)
    close(got.item(), 0.7 * weight * advantage)
    close(torch.autograd.grad(got.sum(), logprobs)[0].item(), -weight * advantage)


def test_advantages_by_row_or_by_token():
    batch = random_batch()
    by_token = batch | {"advantages": batch["advantages"].unsqueeze(1).expand(6, 5)}
    for options in CONFIGS:
        one, two = value_grad_stats(batch, **options), value_grad_stats(by_token, **options)
        close(one, two, 0)


# --- ratio -----------------------------------------------------------------------------------


def test_log_ratio_golden():
    logprobs, old = f64([-1, -2, -9], [-1, -1, -1]), f64([-2, -1.5, 5], [-1, -1, -1])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    # Differences 1 and -0.5, then the padding; their mean is 0.25.
    close(log_ratio(logprobs, old, mask, "token"), f64([1, -0.5, 0], [0, 0, 0]))
    close(log_ratio(logprobs, old, mask, "sequence"), f64([0.25, 0.25, 0], [0, 0, 0]))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_log_ratio_ignores_masked_positions(level, bad):
    batch = random_batch()
    results = []
    for fill in (0.0, bad):
        x, y = (
            batch[name].masked_fill(~batch["mask"], fill).requires_grad_()
            for name in ("logprobs", "old_logprobs")
        )
        got = log_ratio(x, y, batch["mask"], level)
        results.append((got.detach(), *torch.autograd.grad(got.square().sum(), (x, y))))
    close(results[1], results[0], 0)


# --- KL estimators ---------------------------------------------------------------------------


def test_kl_estimate_golden():
    # pi 1/2, ref 1/4, old 1/8: d = -log 2, e^d = 1/2, r = 4.
    args = f64(0.5).log(), f64(0.25).log()
    close(kl_estimate(*args, "k1").item(), math.log(2))
    close(kl_estimate(*args, "k2").item(), math.log(2) ** 2 / 2)
    close(kl_estimate(*args, "k3").item(), 1 / 2 - 1 + math.log(2))
    close(kl_estimate(*args, "unbiased", f64(0.125).log()).item(), 4 * (math.log(2) - 1 / 2))
    close(kl_estimate(*args, "unbiased").item(), math.log(2) - 1 / 2)


def test_k3_of_tiny_differences():
    # e^d - d - 1 = d^2 / 2 + d^3 / 6 + ...: float32's exp would round 1e-10 / 2 away.
    got = kl_estimate(torch.tensor([0.0]), torch.tensor([1e-2]), "k3").double()
    close(got, f64(1e-4 / 2 + 1e-6 / 6 + 1e-8 / 24), 1e-8)


def kl(p_logits, q_logits):
    p, q = p_logits.log_softmax(0), q_logits.log_softmax(0)
    return (p.exp() * (p - q)).sum()


def expected_kl_estimate(kind, on_policy):
    """Compute exact value and gradient by the logits, as a sum over the whole vocabulary."""
    g = torch.Generator().manual_seed(3)
    theta, ref, old = torch.randn(3, 5, generator=g, dtype=torch.float64)
    old = theta.clone() if on_policy else old
    theta.requires_grad_()
    logprobs, old_logprobs = theta.log_softmax(0), old.log_softmax(0)
    estimates = kl_estimate(logprobs, ref.log_softmax(0), kind, old_logprobs)
    value = (old_logprobs.exp() * estimates).sum()

    def gradient(function):
        return torch.autograd.grad(function(theta), theta)[0]

    return value.detach(), torch.autograd.grad(value, theta)[0], gradient, theta, ref, old


@pytest.mark.parametrize("kind", KINDS)
def test_expected_kl_gradient_on_policy(kind):
    value, grad, gradient, theta, ref, _ = expected_kl_estimate(kind, on_policy=True)
    reverse = kl(theta, ref).detach()
    reverse_grad = gradient(lambda x: kl(x, ref))
    forward_grad = gradient(lambda x: kl(ref, x))
    assert (reverse_grad - forward_grad).abs().max() > 0.05  # so that the claims below differ
    assert reverse_grad.abs().max() > 0.05
    if kind == "k2":
        assert abs(value - reverse) > 0.05
    else:
        close(value, reverse)
    expected = {
        "k1": torch.zeros_like(grad),
        "k2": reverse_grad,
        "k3": forward_grad,
        "unbiased": reverse_grad,
    }
    close(grad, expected[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_expected_kl_gradient_off_policy(kind):
    value, grad, gradient, theta, ref, old = expected_kl_estimate(kind, on_policy=False)
    old_probs, ref_logprobs = old.softmax(0), ref.log_softmax(0)
    reverse = kl(theta, ref).detach()
    reverse_grad = gradient(lambda x: kl(x, ref))
    assert (abs(value - reverse) < 1e-12) == (kind == "unbiased")

    def half_square(x):
        return (old_probs * (ref_logprobs - x.log_softmax(0)).square()).sum() / 2

    def score(x):
        coefficient = old_probs * (1 - (ref_logprobs - x.log_softmax(0)).exp()).detach()
        return (coefficient * x.log_softmax(0)).sum()

    expected = {
        "k1": gradient(lambda x: -kl(old, x)),
        "k2": gradient(half_square),
        "k3": gradient(score),
        "unbiased": reverse_grad,
    }
    close(grad, expected[kind])
    for other in set(KINDS) - {"unbiased"}:
        assert (expected[other] - reverse_grad).abs().max() > 0.05


def test_unbiased_on_policy_has_the_gradient_of_the_ratio():
    theta = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theta.requires_grad_()
    ref = f64(0.1, 0.2, 0.3, 0.4).log()
    logprobs = theta.log_softmax(0)
    value = (logprobs.exp().detach() * kl_estimate(logprobs, ref, "unbiased")).sum()
    close(torch.autograd.grad(value, theta), torch.autograd.grad(kl(theta, ref), theta))


# --- weights ---------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
EPISODES = torch.tensor([9, 4, 9, 9])  # episode 9 has 3 + 0 + 2 tokens, episode 4 has 1


@pytest.mark.parametrize(
    ("aggregation", "episodes", "rows"),
    [
        ("grpo", None, [1 / 9, 1 / 3, 0, 1 / 6]),  # 3 rows with tokens: 1/(3*3), 1/(3*1), 1/(3*2)
        ("dapo", None, [1 / 6, 1 / 6, 0, 1 / 6]),  # 6 tokens
        ("bnpo", None, [1 / 6, 1 / 6, 0, 1 / 6]),
        ("dr_grpo", None, [1 / 24, 1 / 24, 0, 1 / 24]),  # 3 rows of a budget of 8
        ("grpo", EPISODES, [1 / 10, 1 / 2, 0, 1 / 10]),  # 2 episodes: 1/(2*5), 1/(2*1)
        ("dapo", EPISODES, [1 / 6, 1 / 6, 0, 1 / 6]),
        ("dr_grpo", EPISODES, [1 / 16, 1 / 16, 0, 1 / 16]),
    ],
)
def test_token_weights_golden(aggregation, episodes, rows):
    got = token_weights(
        MASK, aggregation, max_completion_length=8, episode_ids=episodes, dtype=torch.float64
    )
    close(got, f64(*rows).unsqueeze(1) * MASK)
    if aggregation != "dr_grpo":
        close(got.sum().item(), 1.0)


def test_an_empty_episode_is_not_counted():
    ids = torch.tensor([0, 0, 5, 1])
    got = token_weights(MASK, "grpo", episode_ids=ids, dtype=torch.float64)
    close(got.sum(dim=1), f64(3 / 8, 1 / 8, 0, 1 / 2))


# --- the composed loss -----------------------------------------------------------------------


def test_policy_loss_golden():
    # Two tokens, ratios 1.5 and 0.5, A = 1, ref = old, weights 1/4 and 3/4, rho 2 and 1.
    # Clipped: -1.2 and -0.5. k3 with e^d = 1/r: 2/3 - 1 + log 1.5, 2 - 1 + log 0.5.
    old = f64([-1.0, -2.0])
    batch = {
        "logprobs": old + f64([1.5, 0.5]).log(),
        "advantages": f64(1),
        "mask": torch.tensor([[True, True]]),
        "weights": f64([0.25, 0.75]),
        "old_logprobs": old,
        "ref_logprobs": old,
        "importance_weights": f64([2.0, 1.0]),
    }
    first, second = math.log(1.5) - 1 / 3, 1 - math.log(2)
    value, grad, stats = value_grad_stats(batch, beta=0.1)
    expected = 0.25 * (-2.4 + 0.1 * first) + 0.75 * (-0.5 + 0.1 * second)
    close(value.item(), expected)
    # Gradients by log pi: 0 of the clipped token, -r A of the other; 1 - e^d of k3.
    close(grad, f64([0.25 * 0.1 * (1 - 2 / 3), 0.75 * (-0.5 + 0.1 * (1 - 2))]))
    # approx_kl: (r - 1) - log r.
    approx = (0.5 - math.log(1.5)) + (-0.5 + math.log(2))
    assert mean_stats([stats]) == pytest.approx(
        {
            "tokens": 2,
            "ratio": 1.0,
            "clip_ratio/low": 0.0,
            "clip_ratio/high": 0.5,
            "approx_kl": approx / 2,
            "kl": (first + second) / 2,
        },
        rel=1e-12,
    )
    bad = mean_stats([value_grad_stats(batch | {"advantages": f64(-1)})[2]])
    assert (bad["clip_ratio/low"], bad["clip_ratio/high"]) == (0.5, 0.0)
    for advantage in (1, -1):
        capped = value_grad_stats(batch | {"advantages": f64(advantage)}, loss="cispo")[2]
        assert (capped["clip_ratio/low"], capped["clip_ratio/high"]) == (0, 1)


def test_gspo_golden():
    # Log-ratios log 4 and 0: s = 2 at both tokens, each weighted 1/2. Clipped at 1.2 where A = 1;
    # where A = -1 the loss is 2, and its gradient s / |y| = 1 at each token.
    old = f64([-3.0, -1.0])
    batch = {
        "logprobs": old + f64([4.0, 1.0]).log(),
        "mask": torch.tensor([[True, True]]),
        "weights": f64([0.5, 0.5]),
        "old_logprobs": old,
    }
    for advantage, loss, grad in ((1, -1.2, 0), (-1, 2, 1)):
        got = value_grad_stats(batch | {"advantages": f64(advantage)}, loss="gspo")
        close(got[:2], (f64(loss).squeeze(), f64([grad, grad])))
        assert mean_stats([got[2]])["ratio"] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo"])
def test_gradient_at_ratio_one_is_reinforce(loss):
    batch = random_batch()
    row_mean = token_weights(batch["mask"], "grpo", dtype=torch.float64)  # GSPO's average
    reinforce = -row_mean * batch["advantages"].unsqueeze(1)
    del batch["importance_weights"]
    for old in (None, batch["logprobs"]):
        _, grad, stats = value_grad_stats(batch | {"old_logprobs": old}, loss=loss)
        close(grad, reinforce)
        means = mean_stats([stats])
        assert (means["ratio"], means["approx_kl"]) == (1.0, 0.0)


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_gradcheck(options):
    batch = random_batch()
    logprobs = batch.pop("logprobs")
    if options["loss"] == "cispo":
        # The weight is constant by definition, so it must not follow the finite difference.
        log_r = log_ratio(logprobs, batch["old_logprobs"], batch["mask"], "token")
        function, point = lambda x: cispo(log_r, x, batch["advantages"], 0.2), logprobs
    else:
        function, point = lambda x: policy_loss(x, **batch, **options)[0], logprobs
    assert gradcheck(function, point.requires_grad_())


def test_gradcheck_of_the_parts():
    batch = random_batch()
    x, old, mask = batch["logprobs"].requires_grad_(), batch["old_logprobs"], batch["mask"]
    old.requires_grad_()
    for level in ("token", "sequence"):
        assert gradcheck(lambda x, y, level=level: log_ratio(x, y, mask, level), (x, old))
    for kind in KINDS:
        ref = batch["ref_logprobs"].requires_grad_()
        assert gradcheck(lambda x, r, o, k=kind: kl_estimate(x, r, k, o), (x, ref, old))
    log_r = (x - old).detach().requires_grad_()
    advantages = batch["advantages"].requires_grad_()
    for delta in (None, 1.7):
        arguments = log_r, advantages, 0.2, 0.3, delta
        assert gradcheck(clipped_surrogate, arguments)


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_only_logprobs_receive_a_gradient(options):
    batch = random_batch()
    leaves = {k: v.clone().requires_grad_() for k, v in batch.items() if k != "mask"}
    loss, _ = policy_loss(**leaves, mask=batch["mask"], **options)
    loss.backward()
    assert [k for k, v in leaves.items() if v.grad is not None] == ["logprobs"]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_masked_positions_change_nothing(options, bad):
    clean = random_batch()
    clean["advantages"] = clean["advantages"].unsqueeze(1).expand(6, 5)
    expected = value_grad_stats(clean, **options)
    assert expected[0].isfinite()
    assert expected[1].isfinite().all()
    assert (expected[1][~clean["mask"]] == 0).all()
    names = [name for name in clean if name != "mask"]
    for dirty_names in [*([n] for n in names), names]:
        dirty = {
            k: v.masked_fill(~clean["mask"], bad) for k, v in clean.items() if k in dirty_names
        }
        close(value_grad_stats(clean | dirty, **options), expected, 0)
    by_row = random_batch()
    by_row["advantages"][0] = bad  # row 0 has no token
    close(value_grad_stats(by_row, **options), expected, 0)


@pytest.mark.parametrize("options", CONFIGS, ids=str)
@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_micro_batches_add_up(options, aggregation):
    batch = random_batch(n=7)
    batch["weights"] = token_weights(
        batch["mask"], aggregation, max_completion_length=5, dtype=torch.float64
    )
    value, grad, stats = value_grad_stats(batch, **options)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    for sizes in ([7], [1] * 7, [3, 4], [1, 5, 1], [2, 2, 3]):
        parts, rows = [], order.split(sizes)
        for index in rows:
            part = {k: v[index] for k, v in batch.items()}
            parts.append(value_grad_stats(part, **options))
        close(sum(p[0] for p in parts), value)
        close(torch.cat([p[1] for p in parts]), grad[order])
        assert mean_stats([p[2] for p in parts]) == pytest.approx(mean_stats([stats]), rel=1e-12)


@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_invariances(options):
    batch = random_batch()
    value, grad, stats = value_grad_stats(batch, **options)
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    permuted = value_grad_stats({k: v[order] for k, v in batch.items()}, **options)
    close(permuted, (value, grad[order], stats))

    wider = {k: torch.nn.functional.pad(v, (2, 3)) for k, v in batch.items() if v.ndim == 2}
    wide_value, wide_grad, wide_stats = value_grad_stats(batch | wider, **options)
    close((wide_value, wide_grad[:, 2:-3], wide_stats), (value, grad, stats))

    doubled = batch | {"weights": 2 * batch["weights"]}
    close(value_grad_stats(doubled, **options)[:2], (2 * value, 2 * grad))


def test_importance_weights_scale_the_policy_term_only():
    batch = random_batch()
    rho = batch.pop("importance_weights")
    parts = [value_grad_stats(batch, beta=beta)[1] for beta in (0.0, 1.0)]
    got = value_grad_stats(batch | {"importance_weights": rho}, beta=1.0)[1]
    close(got, rho * parts[0] + (parts[1] - parts[0]))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_kl_stat_is_always_k3(beta):
    batch = random_batch()
    found = {value_grad_stats(batch, beta=beta, kl=kind)[2]["kl"].item() for kind in KINDS}
    assert len(found) == 1
    k3 = kl_estimate(batch["logprobs"], batch["ref_logprobs"], "k3")[batch["mask"]].sum()
    close(found.pop(), k3.item())
    del batch["ref_logprobs"]
    assert "kl" not in value_grad_stats(batch)[2]


def test_dtype_of_the_loss():
    batch = {k: v.float() if v.is_floating_point() else v for k, v in random_batch().items()}
    loss, stats = policy_loss(**batch, beta=0.1)
    assert {loss.dtype, *(s.dtype for s in stats.values())} == {torch.float32}
    assert token_weights(MASK, "grpo").dtype == torch.float32


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"advantages": torch.zeros(6, 1)}, r"advantages must be \[N\]=\[6\] or .*got \[6, 1\]"),
        ({"mask": torch.ones(6, 4).bool()}, r"mask must be \[N, T\]=\[6, 5\], got \[6, 4\]"),
        ({"mask": torch.ones(6, 5)}, "mask must be torch.bool, got torch.float32"),
        ({"weights": torch.ones(6)}, r"weights must be \[N, T\]=\[6, 5\], got \[6\]"),
        ({"old_logprobs": torch.ones(5)}, r"old_logprobs must be .*got \[5\]"),
        ({"ref_logprobs": torch.ones(6, 1)}, r"ref_logprobs must be .*got \[6, 1\]"),
        ({"importance_weights": torch.ones(6, 1)}, r"importance_weights must be .*got \[6, 1\]"),
        ({"ref_logprobs": None, "beta": 0.1}, "beta=0.1 needs ref_logprobs"),
        ({"beta": -0.1}, "beta must not be negative, got -0.1"),
        ({"loss": "ppo"}, "loss must be one of .*got 'ppo'"),
        ({"kl": "k4"}, "kl must be one of .*got 'k4'"),
        ({"epsilon_low": -0.1}, "epsilons must not be negative, got -0.1 and 0.2"),
        ({"epsilon_high": -0.1, "loss": "cispo"}, "epsilon_high must not be negative, got -0.1"),
        ({"delta": 1.1}, r"delta must be above 1 \+ epsilon_high=1.2, got 1.1"),
        ({"delta": 3.0, "loss": "cispo"}, "delta does not apply to cispo, got 3.0"),
    ],
)
def test_policy_loss_errors(change, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**random_batch(), **change})


def test_other_errors():
    for arguments, message in [
        ({"mask": MASK & False, "aggregation": "grpo"}, r"True somewhere, got \[4, 4\] of False"),
        ({"mask": MASK[0], "aggregation": "grpo"}, r"must be \[N, T\], got \[4\]"),
        ({"mask": MASK, "aggregation": "mean"}, "aggregation must be one of .*got 'mean'"),
        ({"mask": MASK, "aggregation": "dr_grpo"}, "positive max_completion_length, got None"),
        (
            {"mask": MASK, "aggregation": "grpo", "episode_ids": torch.zeros(3)},
            r"episode_ids must be \[N\]=\[4\], got \[3\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            token_weights(**arguments)
    with pytest.raises(ValueError, match=r"level must be one of .*got 'row'"):
        log_ratio(MASK.double(), MASK.double(), MASK, "row")
    one, two = {"tokens": torch.tensor(1.0)}, {"tokens": torch.tensor(0.0), "kl": torch.tensor(0.0)}
    for stats, message in [([], "same names"), ([one, two], "same names"), ([two], "one token")]:
        with pytest.raises(ValueError, match=message):
            mean_stats(stats)


# Three rows: ratios 2 and 1/2; e^3 and e^-1; 4. Position [2, 1] is not sampled.
GAPS = f64([math.log(2), -math.log(2)], [3.0, -1.0], [math.log(4), math.nan])
SAMPLED = torch.tensor([[True, True], [True, True], [True, False]])


@pytest.mark.parametrize(
    ("options", "expected", "bounded"),
    [
        ({"cap": 3.0}, [[2, 0.5], [3, math.exp(-1)], [3, 1]], 2),
        ({"cap": 3.0, "bound": "mask"}, [[2, 0.5], [0, math.exp(-1)], [0, 1]], 2),
        ({"cap": 1.9, "bound": "mask"}, [[0, 0], [0, 0], [0, 1]], 5),
        ({"cap": 5.0, "level": "sequence"}, [[1, 1], [5, 5], [4, 1]], 2),
        ({"cap": 5.0, "level": "sequence", "bound": "mask"}, [[1, 1], [0, 0], [4, 1]], 2),
    ],
    ids=str,
)
def test_golden_importance_weights(options, expected, bounded):
    sampling = f64([-1.0, -2.0], [-3.0, -4.0], [-5.0, math.nan])
    leaf = (sampling + GAPS).requires_grad_()
    weights, stats = importance_weights(leaf, sampling, SAMPLED, **options)
    close(weights, f64(*expected))
    assert not weights.requires_grad
    ratios = {"token": 2 + 0.5 + math.exp(3) + math.exp(-1) + 4}
    ratios["sequence"] = 1 + 1 + 2 * math.exp(2) + 4
    assert stats["sampling/is_ratio"].item() == pytest.approx(
        ratios[options.get("level", "token")], rel=1e-12
    )
    assert stats["sampling/is_bounded"].item() == bounded


def test_importance_weights_correct_the_expectation():
    """E_mu[w f] = E_pi[f] exactly, over all nine completions of two tokens, with a high cap."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    generator = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    mask = torch.ones_like(pairs, dtype=torch.bool)
    value = (pairs[:, 0] * 3 + pairs[:, 1] ** 2).double()  # of the whole completion
    weights, _ = importance_weights(
        policy[pairs].log(), generator[pairs].log(), mask, level="sequence", cap=100.0
    )
    expected = (policy[pairs].prod(1) * value).sum()
    close((generator[pairs].prod(1) * weights[:, 0] * value).sum(), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 1.0}, "cap must be above 1, got 1.0"),
        ({"bound": "clip"}, "bound must be one of"),
        ({"level": "row"}, "level must be one of"),
    ],
    ids=str,
)
def test_importance_weights_errors(options, message):
    with pytest.raises(ValueError, match=message):
        importance_weights(GAPS, GAPS, SAMPLED, **options)
