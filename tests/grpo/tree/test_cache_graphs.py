"""The tree cache by CUDA graphs: its passes of fixed shapes on a CPU, the graphs on a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from grpo.model.head import find_decoder
from grpo.tree import cache_graphs
from grpo.tree.cache_graphs import GraphedTreeCache
from grpo.tree.layers import prepare
from grpo.tree.tree_cache import TreeCache
from tests.support.models import make_model

GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def few_keys(monkeypatch):
    """Let the number of slots that nodes read grow within a test, too."""
    monkeypatch.setattr(cache_graphs, "FEWEST_KEYS", 16)


class FixedShapes(GraphedTreeCache):
    """Runs what a graph would replay."""

    def _capture(self, size, keys):
        nodes = self.make_nodes(size, keys)

        def replay():
            self.compute_slots(nodes)
            self.buffers.slots = None

        replay()  # as the warm-up does: into the slot of the padding
        return nodes, SimpleNamespace(replay=replay)


@pytest.fixture(params=["llama", "lfm2"])
def caches(request):
    device = torch.device("cuda" if GPU else "cpu")
    decoder = find_decoder(make_model(request.param).to(device))
    width = prepare(decoder)
    kinds = [GraphedTreeCache if GPU else FixedShapes, TreeCache]
    return [make(decoder, 120, device, width) for make in kinds]


@torch.no_grad()
def test_states_are_those_of_the_plain_cache(caches):
    random = np.random.default_rng(0)
    for _ in range(3):  # cleared in between
        rows = [[*random.integers(0, 4, random.integers(1, 9)).tolist()] for _ in range(3)]
        for turn in range(8):
            found = []
            for cache in caches:
                nodes = np.array([cache.insert(-1, row) for row in rows])
                computed = cache.compute()
                found.append((cache.states(nodes), computed))
            torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
            assert found[0][1] == found[1][1]
            if turn == 4:
                for cache in caches:
                    cache.keep_shared_prefix()
            rows = [[*row, int(random.integers(0, 4))] for row in rows]
            if turn == 2:
                rows.append(random.integers(0, 4, 20).tolist())  # a longer pass than a step's
        for cache in caches:
            cache.clear()
            assert len(cache) == 0


@torch.no_grad()
def test_what_padding_computes_is_read_by_no_node(caches):
    cache = caches[0]
    cache.insert(-1, [1, 2])
    cache.compute()
    last = cache.insert(-1, [1, 2, 3])
    cache.compute()
    before = cache.states(np.array([last])).clone()
    for buffers in cache.buffers.layers.values():
        for buffer in buffers:
            buffer.select(2 if buffer.dim() == 4 else 0, cache.buffers.capacity - 1).fill_(1e4)
    cache.clear()
    cache.insert(-1, [1, 2])
    cache.compute()
    last = cache.insert(-1, [1, 2, 3])
    cache.compute()
    torch.testing.assert_close(cache.states(np.array([last])), before, atol=1e-5, rtol=1e-4)
