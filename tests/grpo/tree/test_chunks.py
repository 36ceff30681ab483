"""Where the attention of a cache's new nodes is cut."""

import numpy as np
import pytest
import torch

from grpo.tree import chunks
from grpo.tree.chunks import CHUNK, cut_chunks


def cut(sees, device="cpu"):
    def attention(start, stop):
        rows = sees[start - first : stop - first]
        keys = np.flatnonzero(rows.any(0))
        return torch.from_numpy(keys), torch.from_numpy(rows[:, keys])

    first = sees.shape[1] - len(sees)
    return cut_chunks(attention, first, sees.shape[1], torch.device(device), sees)


@pytest.fixture
def pages():
    """Three requests on each of two pages of 500 tokens, which share 100: a token of each."""
    old = np.zeros((6, 900), dtype=bool)
    old[:, :100] = True
    old[:3, 100:500] = True
    old[3:, 500:] = True
    return np.concatenate([old, np.eye(6, dtype=bool)], 1)


def test_requests_on_different_pages_are_in_different_chunks(pages):
    found = cut(pages)
    assert [(c.start, c.stop) for c in found] == [(0, 3), (3, 6)]
    assert [len(c.keys) for c in found] == [503, 503]


def test_few_masked_products_are_cheaper_than_a_call(pages, monkeypatch):
    monkeypatch.setattr(chunks, "WASTE", 10_000)
    assert [(c.start, c.stop) for c in cut(pages)] == [(0, 6)]


def test_a_long_prompt_is_cut_by_size_alone():
    length = 2 * CHUNK["cpu"] + 3
    found = cut(np.tri(length, dtype=bool))
    assert [c.stop - c.start for c in found] == [CHUNK["cpu"], CHUNK["cpu"], 3]


def test_every_query_attends_to_what_it_sees(pages):
    random = np.random.default_rng(0)
    for sees in (pages, random.random((40, 90)) < 0.3, random.random((300, 900)) < 0.5):
        rebuilt = np.zeros_like(sees)
        for chunk in cut(sees):
            rebuilt[chunk.start : chunk.stop, chunk.keys] = chunk.mask
        assert (rebuilt == sees).all()
