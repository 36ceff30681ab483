"""The gap between generator and trainer: measured with the policy that sampled, and acted upon."""

import asyncio
import copy
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.local import LocalGenerator
from grpo.model.full_policy import FullPolicy
from grpo.rollouts.agents import model_agent
from grpo.training.gap import GapMonitor
from grpo.training.updater import Updater
from tests.support.training import equal, parameters, run, saved

SETTINGS = {"learning_rate": 0.03, "warmup_steps": 0, "log_kl": False}
GAP = "sampling/logp_difference"


def sampled_by(policy, batch, rows, off=0.0, version=None):
    """Let rows of a batch be sampled by the policy as it is; `off` is the generator's error."""
    with torch.no_grad():
        logprobs = policy.logprobs(batch).logprobs + off * batch.completion_mask
    batch.sampling_logprobs[rows] = logprobs[rows].to(batch.sampling_logprobs)
    batch.policy_versions[rows] = policy.version if version is None else version


@pytest.fixture
def monitored(make_policy):
    """A function that makes an updater and its monitor."""

    def make(policy=None, world=None, **options):
        policy, config = policy or make_policy(double=False), Config(**(SETTINGS | options))
        return Updater(config, policy, world or World.single()), GapMonitor(config, policy)

    return make


@pytest.mark.parametrize("importance", ["none", "token", "sequence"])
@pytest.mark.parametrize("updates", [1, 3])
def test_the_gap_is_measured_with_the_policy_that_sampled(monitored, batch, updates, importance):
    """Rows of two versions, and one that an update cut in two; the generator is 0.01 off."""
    options = {"max_staleness": 1, "updates_per_batch": updates, "importance": importance}
    updater, gap = monitored(max_tokens_per_microbatch=9, **options)
    rows = torch.arange(len(batch))
    sampled_by(updater.policy, batch, rows, off=0.01)
    first = updater.update(batch, gap, 1)
    assert first[GAP] == pytest.approx(0.01, abs=1e-5)
    assert (updater.policy.version, first["sampling/unmeasured"]) == (updates, 0)
    sampled_by(updater.policy, batch, rows[::2], off=0.01)  # the others are those of version 0
    second = updater.update(batch, gap, 2)
    assert second[GAP] == pytest.approx(0.01, abs=1e-5)
    with torch.no_grad():
        now = updater.policy.logprobs(batch).logprobs
    moved = (now - batch.sampling_logprobs)[1::2][batch.completion_mask[1::2]]
    assert moved.abs().mean() > 0.05  # what the metric would contain
    assert second["sampling/is_ratio"] != pytest.approx(math.exp(-0.01), abs=1e-3)  # and this does
    sampled_by(updater.policy, batch, rows, off=0.01)
    batch.is_mixed[0] = True
    batch.sampling_logprobs[0] = -9.0
    third = updater.update(batch, gap, 3)
    assert third[GAP] == pytest.approx(0.01, abs=1e-5)
    cut = batch.completion_mask[0].sum() / batch.completion_mask.sum()
    assert third["sampling/unmeasured"] == pytest.approx(cut.item())
    assert third["sampling/logp_difference"] < 0.02


def test_the_policy_before_the_last_update_is_only_lent(monitored, batch):
    """After the measurement the trained weights are those that were trained."""
    updater, gap = monitored(max_staleness=1)
    sampled_by(updater.policy, batch, torch.arange(len(batch)))
    updater.update(batch, gap, 1)
    before = parameters(updater)
    gap.sampler_logprobs(batch, lambda rows: updater.policy.logprobs(rows).logprobs)
    assert equal(before, parameters(updater))
    with pytest.raises(OSError, match="failed"):
        gap.sampler_logprobs(batch, lambda rows: (_ for _ in ()).throw(OSError("failed")))
    assert equal(before, parameters(updater))


def test_a_version_that_nobody_expects_is_measured_with_the_current_policy(monitored, batch):
    """A generator that names an old version was not given a newer one: that is the gap."""
    for staleness in (0, 1):
        updater, gap = monitored(max_staleness=staleness)
        sampled_by(updater.policy, batch, torch.arange(len(batch)), version=-7)
        metrics = updater.update(batch, gap, 1)
        assert (metrics[GAP] < 1e-5, metrics["sampling/unmeasured"]) == (True, 0)
        with pytest.raises(GeneratorError, match="step 2 was not learned from"):
            updater.update(batch, gap, 2)


def test_stale_rows_of_a_whole_model_are_left_out(monitored, base_model, tokenizer, batch):
    policy = FullPolicy(base_model(dtype=torch.float32), tokenizer)
    options = {"train": "full", "max_staleness": 1, "learning_rate": 1e-3}
    updater, gap = monitored(policy, **options)
    rows = torch.arange(len(batch))
    sampled_by(policy, batch, rows)
    assert updater.update(batch, gap, 1)[GAP] < 1e-5
    metrics = updater.update(batch, gap, 2)  # all of version 0
    assert GAP not in metrics
    assert metrics["sampling/unmeasured"] == 1
    sampled_by(policy, batch, rows)
    sampled_by(policy, batch, rows[:2], off=5.0, version=1)  # the version before: not measured
    metrics = updater.update(batch, gap, 3)
    assert metrics[GAP] < 1e-5
    assert 0 < metrics["sampling/unmeasured"] < 1


class Paid(ScriptedEnv):
    """Pays for the length of what is said, so that every group has a signal; 3 turns."""

    async def step(self, text):
        return replace(await super().step(text), reward=len(text) % 4 / 2)


class SeparateGenerator(LocalGenerator):
    """Samples from a copy of the policy; from its `breaks`-th sync on, weights do not arrive."""

    def __init__(self, trained, breaks, **options):
        thread = ThreadPoolExecutor(1)  # weights arrive between two tokens
        super().__init__(copy.deepcopy(trained), executor=thread, **options)
        self.trained, self.left = trained, breaks

    async def sync(self):
        self.left -= 1
        await asyncio.get_running_loop().run_in_executor(self._executor, self.load)

    def load(self):
        if self.left > 0:
            self.policy.model.load_state_dict(self.trained.model.state_dict())
        self.policy.version = self.trained.version  # it believes so


def with_generator(trainer, generator):
    trainer.generator = generator
    trainer.rollouts.agent = model_agent(generator, trainer.policy.chat, temperature=1.0)
    return trainer


@pytest.mark.parametrize("updates", [1, 4])
async def test_the_local_generators_gap_is_rounding(make_trainer, updates):
    """The update's own steps are not in it, however far they move the policy."""
    options = {"max_turns": 3, "max_new_tokens": 3, "updates_per_batch": updates}
    trainer = make_trainer(Paid, steps=4, **options)
    before = parameters(trainer)
    steps = await run(trainer)
    assert max(metrics[GAP] for metrics in steps) < 1e-5
    assert {metrics["sampling/unmeasured"] for metrics in steps} == {0}
    assert max(metrics["approx_kl"] for metrics in steps) > (1e-3 if updates > 1 else -1)
    assert not equal(before, parameters(trainer))


@pytest.mark.parametrize("updates", [1, 4])
async def test_the_gap_of_rollouts_during_the_update_is_rounding(make_trainer, updates):
    """Neither the update in between is in it nor those that cut completions in two."""
    options = {"max_turns": 3, "max_new_tokens": 3, "updates_per_batch": updates}
    trainer = make_trainer(Paid, steps=5, size=4, max_staleness=1, **options)
    generator = SeparateGenerator(trainer.policy, breaks=99, max_new_tokens=3)
    with_generator(trainer, generator)
    update = trainer.update
    trainer.update = lambda groups: time.sleep(0.1) or update(groups)
    steps = await run(trainer)
    assert max(metrics["sampling/staleness"] for metrics in steps) > 0.1
    assert max(metrics[GAP] for metrics in steps) < 1e-5
    ratios = [abs(metrics["sampling/is_ratio"] - 1) for metrics in steps]
    assert max(ratios) > 1e-3  # the weights do contain the update in between


async def test_a_generator_that_updates_stop_reaching_ends_the_run(make_trainer, caplog):
    """In step 2, in float32: what was learned before it is noticed is saved, and no more."""
    trainer = make_trainer(Paid, steps=9, save_every=1)
    with_generator(trainer, SeparateGenerator(trainer.policy, breaks=2, max_new_tokens=2))
    after, gaps = [], []

    async def train():
        async for step in trainer.train():
            after.append(parameters(trainer))
            gaps.append(step.metrics[GAP])

    with pytest.raises(GeneratorError) as error:
        await train()
    text = str(error.value)
    assert text.startswith("step 3 was not learned from: the generator's log-probabilities differ")
    for part in ("nats per token (mean)", "expected at most 0.001, since step 3", "--gap-stop"):
        assert part in text
    assert "\n" not in text
    assert max(gaps) < 1e-5
    assert (trainer.step, trainer.policy.version, trainer.episodes) == (2, 2, 32)
    assert equal(parameters(trainer), after[-1])
    assert saved(trainer)[-1] == "step-000002"
    state = torch.load(trainer.config.folder / "checkpoints" / "step-000002" / "trainer.pt")
    assert (state["step"], state["episodes"], state["version"]) == (2, 32, 2)


async def test_without_a_bound_the_run_goes_on(make_trainer, caplog):
    trainer = make_trainer(Paid, steps=4, gap_stop=0)
    with_generator(trainer, SeparateGenerator(trainer.policy, breaks=2, max_new_tokens=2))
    steps = await run(trainer)
    assert max(metrics[GAP] for metrics in steps) > 0.02
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line.startswith("step 3: the generator's log-probabilities differ by ")
    caplog.clear()
    trainer = make_trainer(Paid, steps=4, gap_stop=0, gap_warning=0)
    with_generator(trainer, SeparateGenerator(trainer.policy, breaks=2, max_new_tokens=2))
    await run(trainer)
    assert not caplog.records


@pytest.mark.parametrize("first", [1, 2])
async def test_a_corrupt_cache_of_the_local_generator_ends_the_run(make_trainer, first):
    """It reads other states than those that the policy computes, from that step on."""
    trainer = make_trainer(Paid, steps=5)
    generator, before = trainer.generator, parameters(trainer)
    new_cache = generator._new_cache

    def corrupt(capacity):
        cache = new_cache(capacity)
        states = cache.states

        def noisy(nodes):
            hidden = states(nodes)
            return hidden.flip(-1) if trainer.step + 1 >= first else hidden

        cache.states = noisy
        return cache

    generator._new_cache = corrupt
    with pytest.raises(GeneratorError, match=rf"^step {first} was not learned .* --forward padded"):
        await run(trainer)
    assert trainer.policy.version == first - 1
    assert equal(before, parameters(trainer)) == (first == 1)
    assert saved(trainer) == [f"step-{first - 1:06d}"]


@pytest.mark.parametrize("forward", ["auto", "padded"])
async def test_a_normal_run_in_bfloat16_does_not_warn(
    make_trainer, base_model, tokenizer, caplog, forward
):
    from grpo.model.lora_policy import LoRAPolicy

    policy = LoRAPolicy(base_model(dtype=torch.bfloat16), tokenizer, forward=forward)
    options = {"max_new_tokens": 4, "max_turns": 2, "updates_per_batch": 2, "learning_rate": 0.01}
    trainer = make_trainer(Paid, steps=4, policy=policy, **options)
    assert trainer.gap.bound == 0.1
    steps = await run(trainer)
    assert max(metrics[GAP] for metrics in steps) < 0.1
    assert not [r for r in caplog.records if "differ" in r.getMessage()]


@pytest.mark.parametrize(
    ("options", "gap", "outcome"),
    [
        ({}, 4.9e-3, "quiet"),
        ({}, 5.1e-3, "warning"),
        ({}, 19.9e-3, "warning"),
        ({}, 20.1e-3, "stop"),
        ({}, math.nan, "stop"),
        ({}, math.inf, "stop"),
        ({}, None, "quiet"),
        ({"max_logp_difference": 0.01}, 0.19, "warning"),
        ({"max_logp_difference": 0.01}, 0.21, "stop"),
        ({"gap_warning": 2, "gap_stop": 2}, 2.1e-3, "stop"),
        ({"gap_warning": 0, "gap_stop": 2}, 1.9e-3, "quiet"),
        ({"gap_warning": 0}, 19e-3, "quiet"),
        ({"gap_stop": 0}, 9.0, "warning"),
        ({"gap_warning": 0, "gap_stop": 0}, math.nan, "quiet"),
    ],
)
def test_what_is_done_about_a_gap(make_policy, caplog, options, gap, outcome):
    monitor = GapMonitor(Config(**options), make_policy(double=False))
    if outcome == "stop":
        with pytest.raises(GeneratorError):
            monitor.check(1, gap)
    else:
        monitor.check(1, gap)
        monitor.check(2, gap)
    assert len(caplog.records) == (outcome == "warning")  # once for the same excess


def test_an_excess_is_told_again_after_it_was_over(make_policy, caplog):
    monitor = GapMonitor(Config(), make_policy(double=False))
    for step, gap in enumerate([0.01, 0.01, 1e-5, 0.01], 1):
        monitor.check(step, gap)
    assert ["since step 1" in caplog.messages[0], "since step 4" in caplog.messages[1]] == [1, 1]
    with pytest.raises(GeneratorError, match=r"step 5 was not .* since step 4"):
        monitor.check(5, 1.0)
    quiet = GapMonitor(Config(), make_policy(double=False), quiet=True)
    caplog.clear()
    quiet.check(1, 0.01)
    assert not caplog.records


def test_a_rank_whose_own_rows_are_right_stops_with_the_others(monitored, batch):
    """The mean is that of all ranks, so that all of them come to the same end."""
    rows = torch.arange(len(batch))
    wrong, _ = monitored()
    sampled_by(wrong.policy, batch, rows, off=1.0)
    sums = wrong.accumulate(batch)

    class Two(World):
        def all_gather(self, value):
            return [value, sums]

    updater, gap = monitored(world=Two({}))
    sampled_by(updater.policy, batch, rows)
    with pytest.raises(GeneratorError, match=r"differ by 0\.5 nats"):
        updater.update(batch, gap, 1)
    assert updater.policy.version == 0


def test_each_rank_has_its_gap_and_version_in_the_metrics(monitored, batch):
    """A generator that does not follow is found by its rank, though the mean is that of all."""
    rows = torch.arange(len(batch))
    other, _ = monitored()
    sampled_by(other.policy, batch, rows, off=0.25, version=3)
    sums = other.accumulate(batch)

    class Three(World):
        def all_gather(self, value):
            return [value, [dict(part) for part in sums], []]

        def all_reduce_gradients(self, parameters):
            pass

    updater, gap = monitored(world=Three({}), gap_stop=0.0)
    sampled_by(updater.policy, batch, rows, version=4)
    updater.policy.version = 4
    metrics = updater.update(batch, gap, 1)
    assert metrics[GAP] == pytest.approx(0.125, abs=1e-4)
    of_ranks = {name: value for name, value in metrics.items() if "/rank" in name}
    assert of_ranks == {
        "sampling/logp_difference/rank0": pytest.approx(0, abs=1e-4),
        "sampling/logp_difference/rank1": pytest.approx(0.25, abs=1e-4),
        "sampling/version/rank0": 4,
        "sampling/version/rank1": 3,
    }
    alone, gap = monitored()
    sampled_by(alone.policy, batch, rows)
    assert not any("/rank" in name for name in alone.update(batch, gap, 1))


def test_log_probabilities_that_are_not_numbers_are_the_generators_fault(monitored, batch):
    updater, gap = monitored(importance="token")
    sampled_by(updater.policy, batch, torch.arange(len(batch)))
    batch.sampling_logprobs[batch.completion_mask] = math.nan
    with pytest.raises(GeneratorError, match="differ by nan nats"):
        updater.update(batch, gap, 1)


def test_a_policy_whose_log_probabilities_are_not_numbers_is_not(monitored, batch):
    updater, gap = monitored()
    sampled_by(updater.policy, batch, torch.arange(len(batch)))
    with torch.no_grad():
        updater.policy.parameters()[0].fill_(math.nan)
    metrics = updater.update(batch, gap, 1)
    assert (metrics["update/skipped"], GAP in metrics) == (1, False)


async def test_a_completion_over_an_update_says_so(make_policy, perturb):
    """Its tokens are of two policies; one that began after the update is of the new one alone."""
    policy = make_policy(double=False)
    generator = LocalGenerator(policy, max_new_tokens=8)
    step = generator._step

    def update_after_two():
        finished = step()
        if generator.tokens_sampled == 2:
            perturb(policy, seed=3)
            policy.version += 1
        return finished

    generator._step = update_after_two
    policy.model.generation_config.eos_token_id = []
    old = await generator.generate([3, 4, 5], seed=0)
    new = await generator.generate([3, 4, 5], seed=0)
    assert len(old.completion_ids) > 2
    assert (old.policy_version, old.is_mixed) == (0, True)
    assert (new.policy_version, new.is_mixed) == (1, False)
    assert replace(new, is_mixed=True) != new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap_stop": 4}, "gap_stop must be 0 or at least gap_warning=5, got 4"),
        ({"gap_warning": 21}, "gap_stop must be 0 or at least gap_warning=21, got 20"),
        ({"gap_stop": -1}, "gap_stop must be at least 0, got -1"),
        ({"gap_warning": math.nan}, "gap_warning must be a finite number, got nan"),
        ({"gap_warning": 1e9}, "gap_warning must be at most 1000000, got 1000000000.0"),
        ({"gap_stop": 1e9}, "gap_stop must be at most 1000000, got 1000000000.0"),
    ],
)
def test_bounds_that_make_no_sense(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(**options)
