"""The numeric core on a device: the CPU's numbers, and no tensor that was left in main memory."""

import pytest
import torch

from grpo.config import Config
from grpo.distributed import World
from grpo.training.gap import GapMonitor
from grpo.training.updater import Updater
from tests.grpo.device.conftest import FAMILIES
from tests.support.fake_device import DEVICE

PROMPTS = [[3, 4, 5, 6, 8], [3, 4, 5, 9], [7, 2, 7]]
REQUESTS = [(PROMPTS[n % 3], (1.0, 0.7, 0.0)[n % 4 % 3]) for n in range(12)]


@pytest.fixture(params=FAMILIES)
def pair(request, make_pair):
    return make_pair(request.param)


def close(there, here):
    assert there.device == DEVICE
    torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-4, atol=1e-5)


def test_log_probabilities(pair, batch):
    here, there = (policy.logprobs(batch, temperature=0.7) for policy in pair)
    moved = pair[1].logprobs(batch.to(DEVICE), temperature=0.7)
    for got in (there, moved):
        close(got.logprobs, here.logprobs)
        close(got.entropy, here.entropy)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(pair, batch, checkpointing, monkeypatch):
    """Of several micro-batches with a shared prefix, with and without recomputed activations."""
    sums = []
    for policy in pair:
        monkeypatch.setattr(policy, "activation_checkpointing", checkpointing)
        config = Config(max_tokens_per_microbatch=14)
        sums.append(Updater(config, policy, World.single()).accumulate(batch))
    assert len(sums[0]) == len(sums[1]) > 1
    for one, other in zip(*sums, strict=True):
        assert {k: pytest.approx(v.item(), 1e-3, 1e-5) for k, v in one.items()} == other
    for p, q in zip(*(policy.parameters() for policy in pair), strict=True):
        close(q.grad, p.grad)


def test_updates(pair, batch):
    """With everything that an update can compute: reference, old policy, gap, clipping."""
    options = {"beta": 0.05, "updates_per_batch": 2, "importance": "token"}
    results = []
    for policy in pair:
        config = Config(max_tokens_per_microbatch=14, max_staleness=1, **options)
        updater, gap = Updater(config, policy, World.single()), GapMonitor(config, policy)
        gap.check = lambda step, gap: None  # the batch's own log-probabilities are made up
        results.append([updater.update(batch, gap), updater.update(batch, gap)])
    here, there = results
    assert pair[1].version == 4
    for one, other in zip(here, there, strict=True):
        assert {k: pytest.approx(v, 0.02, 1e-3) for k, v in one.items()} == other
    for p, q in zip(pair[1].parameters(), pair[0].parameters(), strict=True):
        assert p.device == DEVICE
        assert (p.detach().cpu() - q.detach()).abs().mean() < 1e-3


def test_completions(pair, sample):
    here, there = (sample(policy, REQUESTS) for policy in pair)
    assert [c.completion_ids for c in here] == [c.completion_ids for c in there]
    for one, other in zip(here, there, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert len({c.completion_ids for c in here}) > 4


def test_completions_from_a_small_cache(make_pair, sample):
    """The cache is emptied on the way, and its shared beginning kept."""
    here, there = make_pair("lfm2")
    small = sample(there, REQUESTS[:9], cache_tokens=14)
    assert [c.completion_ids for c in small] == [
        c.completion_ids for c in sample(here, REQUESTS[:9])
    ]
