from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grpo.tree.token_tree import (
    build_tree,
    common_prefix,
    count_distinct,
    shared_prefix,
    split_rows,
)

# Few distinct tokens, so that rows share prefixes, are equal, or are prefixes of others.
ROWS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12)


def prefixes(rows):
    return {tuple(row[: t + 1]) for row in rows for t in range(len(row))}


@given(ROWS)
def test_every_row_can_be_read_from_its_nodes(rows):
    tree = build_tree(rows)
    for n, row in enumerate(rows):
        nodes = tree.nodes[n, : len(row)]
        assert tree.tokens[nodes].tolist() == row
        assert tree.depths[nodes].tolist() == list(range(len(row)))
        assert tree.parents[nodes].tolist() == [-1, *nodes.tolist()][: len(row)]
        assert (tree.nodes[n, len(row) :] == -1).all()


@given(ROWS)
def test_one_node_per_distinct_prefix(rows):
    tree = build_tree(rows)
    assert len(tree) == count_distinct(rows) == len(prefixes(rows))
    for a, row in enumerate(rows):
        for b, other in enumerate(rows):
            common = shared_prefix(np.array(row, int), np.array(other, int))
            assert row[:common] == other[:common]
            equal = tree.nodes[a, : len(row)].tolist(), tree.nodes[b, : len(other)].tolist()
            assert equal[0][:common] == equal[1][:common]
            assert not set(equal[0][common:]) & set(equal[1][common:])


def lineages(tree):
    """List the ancestors of each node, itself first, by following the parents."""
    found = []
    for node in range(len(tree)):
        lineage = [node]
        while tree.parents[lineage[-1]] >= 0:
            lineage.append(int(tree.parents[lineage[-1]]))
        found.append(lineage)
    return found


@given(ROWS, st.integers(1, 9))
def test_a_run_of_nodes_attends_to_its_ancestors_only(rows, size):
    tree = build_tree(rows)
    for start in range(0, len(tree), size):
        stop = min(start + size, len(tree))
        keys, mask = tree.attention(start, stop)
        above = [node for node in lineages(tree)[start] if node < start]
        assert keys.tolist() == [*sorted(above), *range(start, stop)]
        assert mask.shape == (stop - start, len(keys))
        for row, lineage in zip(mask, lineages(tree)[start:stop], strict=True):
            assert keys[row].tolist() == sorted(lineage)


@given(ROWS, st.integers(0, 4))
def test_ancestors(rows, count):
    tree = build_tree(rows)
    padding = [len(tree)] * count
    expected = [(lineage + padding)[:count] for lineage in lineages(tree)]
    assert tree.ancestors(count).tolist() == expected


@given(ROWS)
def test_descendants_are_a_range(rows):
    tree = build_tree(rows)
    for node in range(len(tree)):
        inside = [other for other, lineage in enumerate(lineages(tree)) if node in lineage]
        assert inside == list(range(node, int(tree.ends[node])))


@given(ROWS)
def test_common_prefix(rows):
    common = common_prefix(rows)
    assert all(row[: len(common)] == common for row in rows)
    following = {tuple(row[: len(common) + 1]) for row in rows}
    assert not rows or len(following) > 1 or following == {tuple(common)}


def test_a_small_tree_by_hand():
    tree = build_tree([[5, 7], [5, 6, 8], [], [5, 6], [5, 6, 8]])
    assert tree.tokens.tolist() == [5, 6, 8, 7]
    assert tree.parents.tolist() == [-1, 0, 1, 0]
    assert tree.depths.tolist() == [0, 1, 2, 1]
    assert tree.ends.tolist() == [4, 3, 3, 4]
    assert tree.nodes.tolist() == [[0, 3, -1], [0, 1, 2], [-1] * 3, [0, 1, -1], [0, 1, 2]]


def test_no_rows():
    tree = build_tree([])
    assert len(tree) == 0
    assert tree.nodes.shape == (0, 0)
    assert tree.attention(0, 0)[1].shape == (0, 0)
    assert tree.ancestors(3).shape == (0, 3)
    assert count_distinct([]) == 0
    assert split_rows([], 4) == []


@given(ROWS, st.integers(1, 12))
def test_split_keeps_every_row_once_within_the_budget(rows, budget):
    parts = split_rows(rows, budget)
    assert sorted(n for part in parts for n in part) == list(range(len(rows)))
    for part in parts:
        assert len(build_tree([rows[n] for n in part])) <= budget or len(part) == 1


@given(ROWS, st.integers(1, 12))
def test_no_part_could_take_the_next_row(rows, budget):
    parts = split_rows(rows, budget)
    for part, following in pairwise(parts):
        assert len(prefixes([rows[n] for n in [*part, following[0]]])) > budget


def test_groups_stay_together_where_they_fit():
    groups = [[[g, 1, 2, 3, last] for last in range(3)] for g in range(4)]
    rows = [groups[g][k] for k in range(3) for g in range(4)]  # interleaved
    parts = split_rows(rows, max_nodes=7)  # exactly one group's tree
    assert [{rows[n][0] for n in part} for part in parts] == [{0}, {1}, {2}, {3}]
    assert split_rows(rows, max_nodes=28)[1:] == []
