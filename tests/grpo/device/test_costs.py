"""What a GPU pays for: waits of the host and launches, per decoding step, prompt and update."""

import pytest
import torch

from grpo.config import Config
from grpo.distributed import World
from grpo.training.gap import GapMonitor
from grpo.training.updater import Updater
from grpo.tree.tree_cache import TreeCache
from tests.grpo.device.conftest import FAMILIES
from tests.support.fake_device import DEVICE
from tests.support.workloads import Workload

WAITS_PER_STEP = 3
WAITS_PER_UPDATE, WAITS_PER_MICRO_BATCH = 20, 2
TOKENS = 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoding_step_costs_the_same_for_any_number_of_requests(
    family, make_pair, sample, device, monkeypatch
):
    policy = make_pair(family)[1]
    monkeypatch.setattr(type(policy), "stop_ids", frozenset())  # all take the same steps
    costs = []
    for count in (2, 32):
        requests = [([3, 4, 5, 7], 1.0) for _ in range(count)]
        cost = device.count(lambda some=requests: sample(policy, some, max_new_tokens=TOKENS))
        costs.append(cost)
    (waits, launches), many = costs
    print(f"{family}: {waits / TOKENS} waits and {launches / TOKENS} launches per step")
    assert many == (waits, launches)
    assert TOKENS <= waits <= TOKENS * WAITS_PER_STEP


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_prompt_costs_the_same_for_any_length(family, make_pair, device):
    policy = make_pair(family)[1]
    cache = TreeCache(policy.decoder, 400, DEVICE, policy.conv_width)
    insertions, passes = [], []
    for length in (3, 30, 90):
        prompt = [7, *([length % 11 + 2] * length)]
        insertions.append(device.count(lambda prompt=prompt: cache.insert(-1, prompt)))
        with torch.no_grad():
            passes.append(device.count(cache.compute))
    assert insertions == [(0, 0)] * 3
    assert passes[1] == passes[2]
    assert all(waits == 0 for waits, _ in passes)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"beta": 0.05, "updates_per_batch": 2}])
def test_waits_of_an_update(family, options, make_pair, device):
    policy = make_pair(family)[1]
    # More distinct prefixes of sampled tokens than `token_logprobs` has in a chunk.
    rows = Workload(groups=4, group_size=8, prompt=24, shared_prefix=12, completion=8)
    batch = rows.batch(vocabulary=16)

    def count(budget):
        config = Config(max_tokens_per_microbatch=budget, importance="token", **options)
        updater, gap = Updater(config, policy, World.single()), GapMonitor(config, policy)
        gap.check = lambda step, gap: None  # the batch's own log-probabilities are made up
        parts = len(updater.slices(batch))
        waits, launches = device.count(lambda: updater.update(batch, gap))
        print(f"{family}: {parts} micro-batches, {waits} waits, {launches} launches")
        assert 2 <= waits <= WAITS_PER_UPDATE + WAITS_PER_MICRO_BATCH * parts
        return parts

    assert count(10_000) == 1
    assert count(128) >= 2
