"""When something is captured, and what happens where it cannot be; the captures are pretended."""

import warnings

import pytest
import torch
from torch import nn

from grpo.tree.capture import Graphs


def raising(error):
    def make():
        raise error

    return make


def test_a_key_is_captured_once():
    graphs = Graphs(nn.Linear(1, 1))
    assert [graphs.get(n, lambda n=n: [n]) for n in (1, 2)] == [[1], [2]]
    assert graphs.get(1, raising(AssertionError)) == [1]


def test_what_cannot_be_captured_is_warned_of_once_and_not_tried_again():
    graphs = Graphs(nn.Linear(1, 1))
    graphs.get(1, lambda: "captured")
    with pytest.warns(UserWarning, match=r"Linear cannot be captured as a CUDA graph.*: it waits"):
        assert graphs.get(2, raising(RuntimeError("it waits"))) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs.get(1, raising(AssertionError)) is None
        assert graphs.get(3, raising(AssertionError)) is None


def test_where_memory_runs_out_all_are_dropped_and_captured_again():
    graphs = Graphs(nn.Linear(1, 1))
    graphs.get(1, lambda: "captured")
    with pytest.raises(torch.OutOfMemoryError):
        graphs.get(2, raising(torch.OutOfMemoryError()))
    assert graphs.get(1, lambda: "again") == "again"
