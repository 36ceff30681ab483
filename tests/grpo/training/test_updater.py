"""One update of several passes: its metrics, its old policy, and what is not finite."""

import copy
import math

import pytest
import torch

from grpo.algorithm.losses import mean_stats
from grpo.config import Config
from grpo.distributed import World
from grpo.training.metrics import METRICS
from grpo.training.updater import TrainingError, Updater

SETTINGS = {"learning_rate": 0.03, "warmup_steps": 0, "beta": 0.05}
NO_REFERENCE = {"beta": 0.0, "log_kl": False}


@pytest.fixture
def make_updater(make_policy):
    """A function that makes an updater of a tiny policy in float32."""

    def make(**options):
        policy = make_policy(double=False)
        return Updater(Config(**(SETTINGS | options)), policy, World.single())

    return make


def parameters(updater):
    return [p.detach().clone() for p in updater.policy.parameters()]


def equal(one, other):
    return all(map(torch.equal, one, other))


def poison(updater, passes, value=math.nan):
    """Multiply the first parameter's gradient by a value in the passes of these numbers."""
    count, accumulate = [0], updater.accumulate

    def counted(batch):
        count[0] += 1
        return accumulate(batch)

    def spoil(gradient):
        return gradient * (value if count[0] in passes else 1)

    updater.accumulate = counted
    updater.policy.parameters()[0].register_hook(spoil)
    return count


def record(updater):
    """Keep what each pass of an update measures, and the weights that it starts from."""
    passes, accumulate = [], updater.accumulate

    def noted(batch):
        before = parameters(updater)
        parts = accumulate(batch)
        loss = sum(part["loss"].item() for part in parts)
        means = mean_stats([{k: v for k, v in part.items() if k != "loss"} for part in parts])
        norm = torch.cat([p.grad.flatten() for p in updater.policy.parameters()]).norm().item()
        passes.append({"before": before, "loss": loss, "grad_norm": norm, **means})
        return parts

    updater.accumulate = noted
    return passes


@pytest.mark.parametrize("updates", [1, 2, 4])
def test_metrics_are_means_over_all_passes(make_updater, batch, updates):
    updater = make_updater(updates_per_batch=updates, warmup_steps=3, max_tokens_per_microbatch=9)
    passes = record(updater)
    metrics = updater.update(batch)
    assert len(passes) == updater.policy.version == updates
    assert set(metrics) <= set(METRICS)
    measured = set(passes[0]) - {"before", "tokens", "sampling/version"}
    assert measured == set(metrics) - {"learning_rate", "update/skipped"}
    for name in measured:
        mean = sum(each[name] for each in passes) / updates
        assert metrics[name] == pytest.approx(mean, rel=1e-5, abs=1e-9), name
    if updates > 1:
        assert passes[0]["approx_kl"] == pytest.approx(0, abs=1e-9)
        assert passes[0]["approx_kl"] < metrics["approx_kl"] < passes[-1]["approx_kl"]
        assert len({round(each["grad_norm"], 4) for each in passes}) == updates
    assert metrics["learning_rate"] == pytest.approx(0.03 * updates / 4)  # of the last pass
    assert metrics["update/skipped"] == 0


@pytest.mark.parametrize(
    ("warmup", "decay_over", "expected"),
    [
        (0, math.inf, [1, 1, 1, 1, 1]),
        (2, math.inf, [1 / 3, 2 / 3, 1, 1, 1]),
        (0, 4, [1, 3 / 4, 1 / 2, 1 / 4, 0]),
        (2, 5, [1 / 3, 2 / 3, 3 / 5, 2 / 5, 1 / 5]),  # the smaller of the two
    ],
)
def test_the_learning_rate_rises_and_where_asked_falls_to_0(
    make_policy, batch, warmup, decay_over, expected
):
    config = Config(**SETTINGS | {"warmup_steps": warmup})
    updater = Updater(config, make_policy(), World.single(), decay_over=decay_over)
    rates = [updater.update(batch)["learning_rate"] for _ in expected]
    assert rates == pytest.approx([config.learning_rate * part for part in expected], abs=1e-12)


def test_a_single_pass_is_on_policy_and_the_second_one_is_not(make_updater, batch):
    metrics = make_updater().update(batch)
    assert (metrics["ratio"], metrics["approx_kl"]) == (1, 0)
    metrics = make_updater(updates_per_batch=2).update(batch)
    assert abs(metrics["ratio"] - 1) > 1e-4
    assert metrics["approx_kl"] > 1e-5


@pytest.mark.parametrize("updates", [1, 4])
def test_the_gap_to_the_generator_is_that_before_the_update(
    make_updater, make_policy, batch, updates
):
    """Not the update's own steps, which would look like a generator that computes otherwise."""
    policy = make_policy(double=False)
    with torch.no_grad():
        logprobs = policy.logprobs(batch).logprobs
    own = logprobs + 0.25 * batch.completion_mask  # the generator's are 0.25 too high
    batch.sampling_logprobs.copy_(own)
    updater = make_updater(updates_per_batch=updates, importance="token")
    before = parameters(updater)
    metrics = updater.update(batch)
    assert metrics["sampling/logp_difference"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["sampling/is_ratio"] == pytest.approx(math.exp(-0.25), abs=1e-5)
    with torch.no_grad():  # although the policy has moved
        moved = updater.policy.logprobs(batch).logprobs - logprobs
    assert moved.abs().max() > 0.1
    assert not equal(before, parameters(updater))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("bad", [1, 2, 4])
def test_a_pass_that_is_not_finite_ends_the_passes_of_its_batch(make_updater, batch, bad, value):
    updater = make_updater(updates_per_batch=4)
    passes = record(updater)
    poison(updater, {bad}, value)
    metrics = updater.update(batch)
    assert len(passes) == bad
    assert updater.policy.version == bad - 1  # those before it were steps
    assert metrics["update/skipped"] == 1
    assert not math.isfinite(metrics["grad_norm"])
    assert updater.bad_updates == 1
    assert equal(parameters(updater), passes[-1]["before"])  # the bad one was not
    assert all(p.isfinite().all() for p in parameters(updater))


def test_a_bad_batch_of_several_passes_counts_once(make_updater, batch):
    """With four passes per batch one bad batch is not four bad updates, which would end the run."""
    updater = make_updater(updates_per_batch=4, max_bad_updates=3)
    count = poison(updater, {1})
    assert updater.update(batch)["update/skipped"] == 1
    assert (count[0], updater.bad_updates, updater.policy.version) == (1, 1, 0)
    assert updater.update(batch)["update/skipped"] == 0
    assert (count[0], updater.bad_updates, updater.policy.version) == (5, 0, 4)


@pytest.mark.parametrize("updates", [1, 4])
def test_too_many_bad_batches_in_a_row_are_an_error(make_updater, batch, updates):
    updater = make_updater(updates_per_batch=updates, max_bad_updates=3)
    before = parameters(updater)
    count = poison(updater, {1, 2, 3, 4})
    assert [updater.update(batch)["update/skipped"] for _ in range(2)] == [1, 1]
    with pytest.raises(TrainingError, match=r"^3 updates in a row were not finite: loss "):
        updater.update(batch)
    assert count[0] == 3
    assert equal(before, parameters(updater))


def test_a_loss_that_is_not_finite_is_skipped(make_updater, batch):
    updater = make_updater()
    batch.advantages[0] = math.inf
    before = parameters(updater)
    metrics = updater.update(batch)
    assert metrics["update/skipped"] == 1
    assert not math.isfinite(metrics["loss"])
    assert equal(before, parameters(updater))


def test_a_rank_without_rows_steps_with_the_others(make_updater, batch):
    """Its gradient is 0, and the sums of the other rank make the metrics."""
    sums = make_updater(**NO_REFERENCE).accumulate(batch)

    class Two(World):
        def all_gather(self, value):
            return [value, [dict(part) for part in sums]]

        def all_reduce_gradients(self, parameters):
            for p in parameters:
                assert p.grad is None
                p.grad = torch.ones_like(p)

    updater = make_updater(max_grad_norm=0.0, **NO_REFERENCE)
    updater.world = Two({})
    before = parameters(updater)
    empty = batch.select([])
    metrics = updater.update(empty)
    assert metrics["loss"] == pytest.approx(sum(part["loss"].item() for part in sums))
    assert updater.policy.version == 1
    for now, then in zip(parameters(updater), before, strict=True):
        torch.testing.assert_close(now, then - 0.03, rtol=0, atol=1e-5)  # Adam's first step


def test_the_state_is_that_of_optimizer_and_schedule(make_updater, batch):
    one, other = make_updater(warmup_steps=5), make_updater(warmup_steps=5)
    for _ in range(2):
        one.update(batch)
    with torch.no_grad():
        for p, q in zip(other.policy.parameters(), one.policy.parameters(), strict=True):
            p.copy_(q)
    other.load_state(copy.deepcopy(one.state()))  # as a checkpoint does
    assert one.update(batch)["learning_rate"] == other.update(batch)["learning_rate"]
    assert equal(parameters(one), parameters(other))


def test_only_the_adapter_has_gradients(make_updater, batch):
    updater = make_updater(**NO_REFERENCE)
    updater.accumulate(batch)
    trained = {id(p) for p in updater.policy.parameters()}
    model = updater.policy.model
    assert all((p.grad is not None) == (id(p) in trained) for p in model.parameters())
