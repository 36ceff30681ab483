"""The benchmark of the update: what it counts, and that its workers answer."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.update import Worker, distance
from tests.support.workloads import Workload, floor_operations

SMALL = Workload(groups=2, group_size=3, prompt=20, prefix=8, completion=4, pages=(1, 2))


def test_rows_share_their_trunk_and_their_pages():
    batch = SMALL.batch(16)
    rows = batch.rows()
    assert len(rows) == 2 * 3 * 2
    assert len({tuple(row[:8]) for row in rows}) == 1
    assert 2 <= len({tuple(row[:20]) for row in rows[:6]}) <= 3
    assert not {tuple(row[:20]) for row in rows[:6]} & {tuple(row[:20]) for row in rows[6:]}
    assert (batch.completion_mask.sum(1) <= 4).all()
    assert not batch.completion_mask[:, :20].any()
    assert batch.token_weights.sum() == pytest.approx(1)


def test_the_floor_by_hand():
    # Two rows of three tokens that share two; the third was sampled.
    batch = Workload(groups=1, group_size=2, prompt=2, prefix=1, completion=1).batch(10**6)
    config = SimpleNamespace(
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
    weights = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6  # q, k and v, o, the three of the block
    adapters = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 6)  # in + out of each
    nodes, pairs, sampled = 4, 1 + 2 + 3 + 3, 1
    layer = 2 * 2 * nodes * weights + 2 * 3 * nodes * 8 * adapters + 2 * 6 * pairs * 4
    assert floor_operations(batch, config, 8) == 3 * layer + 2 * 2 * sampled * 4 * 10


@pytest.mark.skipif(sys.platform != "linux", reason="a worker reads its memory from /proc")
def test_workers_agree(base_model, tokenizer, tmp_path):
    base_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = Namespace(model=str(tmp_path / "model"), device="cpu")
    gradients = []
    for name, rows, flags in (
        ("tree", 4096, ()),
        ("tree", 30, ("--checkpointing",)),
        ("padded", 2, ()),
    ):
        worker = Worker(name, arguments, str(tmp_path), *flags)
        assert worker.ask(do="rate")["rate"] > 0
        answer = worker.step(SMALL, rows, str(tmp_path / "gradients.pt"))
        worker.close()
        assert answer["seconds"] > 0
        assert answer["distinct"] < answer["tokens"]
        gradients.append(torch.load(tmp_path / "gradients.pt"))
    assert all(distance(one, gradients[0]) < 1e-5 for one in gradients)
    assert distance({n: -g for n, g in gradients[0].items()}, gradients[0]) == pytest.approx(2)
