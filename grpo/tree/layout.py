"""The interface through which a model's layers see a token tree (see `grpo.tree.layers`).

The update computes a whole tree at once (`grpo.model.forward.TreeLayout`); the local generator
adds to its tree with every token (`grpo.tree.tree_cache.NodeBuffers`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from grpo.tree.kernel_choice import Heads

LayerCall = tuple[nn.Module, int]
"""A layer, and the number of its call within a forward pass: some layers are called twice."""

LayerCache = dict[LayerCall, tuple[Tensor, ...]]
"""What each call of a layer computed at earlier nodes: keys and values, a convolution's inputs."""


class Chunk(NamedTuple):
    """The queries [start, stop) and the nodes that they attend to.

    Attributes:
        start, stop: positions among the nodes that are computed now.
        keys: [K] long; the nodes that at least one of the queries attends to; None for all.
        mask: [stop - start, K] bool, True where the query attends to the key; or numbers to add
            to the products.
    """

    start: int
    stop: int
    keys: Tensor | None
    mask: Tensor


class Layout(ABC):
    """A token tree as the layers see it; L of its nodes are computed in this forward.

    Attributes:
        chunks: the queries of the attention, cut into pieces.
        calls: how often each layer was called in this forward pass so far.
    """

    chunks: Sequence[Chunk]

    def __init__(self) -> None:
        self.calls: Counter[nn.Module] = Counter()

    def call_of(self, layer: nn.Module) -> LayerCall:
        """Name this call of a layer; each call of `prepend_cached` and `taps` is one."""
        self.calls[layer] += 1
        return layer, self.calls[layer]

    def block_mask(self, heads: Heads) -> BlockMask | None:
        """Return the mask for flex_attention; None to use SDPA with the chunks.

        Args:
            heads: of the attention.
        """
        return None

    @abstractmethod
    def prepend_cached(self, layer: nn.Module, *own: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Put what the layer computed at earlier nodes before what it computed now.

        Args:
            layer: any layer in which a token sees others.
            own: tensors of the new nodes, of length L in dimension `dim`.
            dim: the dimension of the nodes.

        Returns:
            One tensor for each of `own`, of all nodes up to the last new one.
        """

    @abstractmethod
    def taps(self, layer: nn.Module, own: Tensor) -> list[Tensor]:
        """Gather what each tap of a convolution reads: the node itself, its parent and so on.

        Args:
            layer: the convolution.
            own: [L, D], its input at the new nodes.

        Returns:
            W tensors [L, D]; 0 above a root.
        """
