"""Rows of tokens as one tree that holds every shared prefix once.

The rows of a step repeat themselves: all begin with one system prompt, the episodes of a group
read the same page, and short completions are often equal. Under a causal model two positions with
equal prefixes have equal hidden states, so one forward over the distinct prefixes, in which each
token attends to its ancestors only, computes all of them.

Sorting the rows first puts the nodes in depth-first order. The descendants of node j are then the
contiguous range [j, end[j]), and j is an ancestor of i (or i itself) exactly if
`j <= i < end[j]`: the attention mask is one comparison. Outside itself, a run of nodes [a, b)
attends to ancestors of a only, because an ancestor of i before a has a within its range. So
attention is computed one run at a time, at a cost that grows with the depth of the tree and not
with its width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTree:
    """M nodes, one per distinct prefix of N rows of up to T tokens.

    Attributes:
        tokens: [M] long; the last token of the prefix.
        parents: [M] long; the node of the prefix without that token, -1 at a root.
        depths: [M] long; the token's position: the length of the prefix less one.
        ends: [M] long; one past the last descendant.
        nodes: [N, T] long; the node of token t of row n, -1 past the row's end.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    ends: Tensor
    nodes: Tensor

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def attention(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Find what the nodes [start, stop) attend to: the ancestors of the first, and each other.

        Returns:
            keys [K] long, ascending, and mask [stop - start, K] bool, True where the key is an
            ancestor of the node or the node itself.
        """
        above = (self.ends[:start] > start).nonzero()[:, 0]
        nodes = torch.arange(start, stop)
        keys = torch.cat([above, nodes])
        return keys, (keys <= nodes[:, None]) & (nodes[:, None] < self.ends[keys])

    def ancestors(self, count: int) -> Tensor:
        """List each node, its parent and so on: [M, count] long, M past the root."""
        parents = torch.cat([self.parents, torch.tensor([-1])])
        ancestors = torch.full((len(self), count), -1)
        current = torch.arange(len(self))
        for k in range(count):
            ancestors[:, k] = current
            current = parents[current]
        return torch.where(ancestors < 0, len(self), ancestors)


def build_tree(rows: Sequence[Sequence[int]]) -> TokenTree:
    """Build the tree of rows, in time linear in their tokens after sorting.

    Args:
        rows: N sequences of token ids, of any lengths.

    Returns:
        The tree; equal rows share all their nodes.
    """
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    width = max((len(row) for row in arrays), default=0)
    nodes = np.full((len(arrays), width), -1, dtype=np.int64)
    tokens: list[Ids] = []
    parents: list[Ids] = []
    depths: list[Ids] = []
    ends = np.zeros(sum(map(len, arrays)), dtype=np.int64)
    path, count = np.empty(0, np.int64), 0
    for n, row, shared in in_order(arrays):
        ends[path[shared:]] = count  # the nodes that this row branches off from end here
        new = np.arange(count, count + len(row) - shared)
        path = np.concatenate([path[:shared], new])
        tokens.append(row[shared:])
        parents.append(
            np.concatenate([path[shared - 1 : shared] if shared else [-1], new])[: len(new)]
        )
        depths.append(np.arange(shared, len(row)))
        nodes[n, : len(row)] = path
        count += len(new)
    ends[path] = count

    def tensor(parts: list[Ids]) -> Tensor:
        flat = np.concatenate(parts) if parts else np.empty(0)
        return torch.from_numpy(flat.astype(np.int64))

    return TokenTree(
        tokens=tensor(tokens),
        parents=tensor(parents),
        depths=tensor(depths),
        ends=torch.from_numpy(ends[:count]),
        nodes=torch.from_numpy(nodes),
    )


def in_order(rows: Sequence[Ids]) -> Iterator[tuple[int, Ids, int]]:
    """Yield rows in sorted order: index, row, length of the prefix shared with the row before."""
    previous = np.empty(0, np.int64)
    for n in sorted(range(len(rows)), key=lambda n: rows[n].tolist()):
        yield n, rows[n], shared_prefix(previous, rows[n])
        previous = rows[n]


def shared_prefix(a: Ids, b: Ids) -> int:
    """Count the leading tokens that two rows have in common."""
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def count_distinct(rows: Sequence[Sequence[int]]) -> int:
    """Count the distinct prefixes of rows: the nodes of their tree."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    return sum(len(row) - shared for _, row, shared in in_order(arrays))


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that all rows begin with."""
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    length = min((shared_prefix(arrays[0], row) for row in arrays), default=0)
    return list(rows[0][:length]) if length else []


def split_rows(rows: Sequence[Sequence[int]], max_nodes: int) -> list[list[int]]:
    """Split rows into parts whose trees have at most max_nodes nodes each.

    Rows are taken in sorted order, so rows that share a prefix stay together. Each part computes
    the prefixes that it shares with others once more. A row longer than the budget is a part by
    itself.

    Args:
        rows: N sequences of token ids.
        max_nodes: the budget, in tree nodes (distinct tokens).

    Returns:
        Lists of row indices that together hold every row once.
    """
    parts: list[list[int]] = []
    count = 0
    for n, row, shared in in_order([np.asarray(row, dtype=np.int64) for row in rows]):
        new = len(row) - shared
        if not parts or count + new > max_nodes:
            parts.append([])
            count, new = 0, len(row)
        parts[-1].append(n)
        count += new
    return parts
