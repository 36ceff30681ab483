"""Frozen bfloat16 matrices in the layout in which a CPU multiplies few rows fastest.

It is oneDNN's own layout, in which torch's compiler holds frozen weights, too. The products are the
same to the last bit. On a CPU with AVX-512 they take 0.4 to 0.7 of the time for up to 16 rows and
0.8 for 48; from some hundred rows on there is little to gain. The operators have no public name, so
a build of torch that lacks them multiplies as before.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

_OPERATORS = "_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"


class PackedWeight:
    """A second copy of a frozen matrix, made at its first product, and again if the matrix changes.

    A copy of this object is empty.
    """

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._version = (0, 0)
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute `x W^T + bias` without gradients.

        Args:
            x: [N, in], in W's dtype.
            weight: W, [out, in]; multiplied as it is where it cannot be packed.
            bias: [out] or None.

        Returns:
            [N, out].
        """
        if not can_pack(weight):
            return F.linear(x, weight, bias)
        operators = torch.ops.mkldnn
        version = (weight.data_ptr(), weight._version)
        if self._packed is None or self._source is not weight or self._version != version:
            self._packed = operators._reorder_linear_weight(weight.detach())
            self._source, self._version = weight, version
        y: Tensor = operators._linear_pointwise(x, self._packed, bias, "none", [], "")
        return y


def can_pack(weight: Tensor) -> bool:
    """Return True for a bfloat16 matrix on a CPU for whose products torch has the operators."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _has_operators()


@functools.cache
def _has_operators() -> bool:
    operators = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available():
        return False
    present = all(hasattr(operators, name) for name in _OPERATORS)
    return present and bool(operators._is_mkldnn_bf16_supported())
