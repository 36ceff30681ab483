"""`benchmarks/update.py`: its workload, its floor, its workers."""

import sys
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.update import Implementation, distance
from tests.support.models import make_llama, make_tokenizer
from tests.support.workloads import Workload, floor_operations

SMALL = Workload(groups=2, group_size=3, prompt=20, shared_prefix=8, completion=4, pages=(1, 2))


def test_rows_share_their_prefix_and_their_pages():
    batch = SMALL.batch(16)
    rows = batch.rows()
    assert len(rows) == 2 * 3 * 2
    assert len({tuple(row[:8]) for row in rows}) == 1
    assert 2 <= len({tuple(row[:20]) for row in rows[:6]}) <= 3
    assert not {tuple(row[:20]) for row in rows[:6]} & {tuple(row[:20]) for row in rows[6:]}
    assert (batch.completion_mask.sum(1) <= 4).all()
    assert not batch.completion_mask[:, :20].any()
    assert batch.token_weights.sum() == pytest.approx(1)


def test_floor_operations_counted_by_hand():
    # Two rows of three tokens share two; the third token is sampled.
    batch = Workload(groups=1, group_size=2, prompt=2, shared_prefix=1, completion=1).batch(10**6)
    config = SimpleNamespace(
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
    weights = (
        4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6
    )  # q, k and v, o, the three feed-forward matrices
    adapters = (4 + 4) + 2 * (4 + 2) + (4 + 4) + 3 * (4 + 6)  # in + out of each
    nodes, pairs, sampled = 4, 1 + 2 + 3 + 3, 1
    layer = 2 * 2 * nodes * weights + 2 * 3 * nodes * 8 * adapters + 2 * 6 * pairs * 4
    assert floor_operations(batch, config, 8) == 3 * layer + 2 * 2 * sampled * 4 * 10


@pytest.mark.skipif(sys.platform != "linux", reason="workers read their memory from /proc")
def test_workers_compute_the_same_gradient(tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    arguments = Namespace(model=str(tmp_path / "model"), device="cpu")
    gradients = []
    for name, rows, flags in (
        ("tree", 4096, ()),
        ("tree", 30, ("--checkpointing",)),
        ("padded", 2, ()),
    ):
        worker = Implementation(name, arguments, str(tmp_path), *flags)
        assert worker.ask(do="rate")["rate"] > 0
        response = worker.step(SMALL, rows, str(tmp_path / "gradients.pt"))
        worker.close()
        assert response["seconds"] > 0
        assert response["distinct"] < response["tokens"]
        gradients.append(torch.load(tmp_path / "gradients.pt"))
    assert all(distance(one, gradients[0]) < 1e-5 for one in gradients)
    assert distance({n: -g for n, g in gradients[0].items()}, gradients[0]) == pytest.approx(2)
