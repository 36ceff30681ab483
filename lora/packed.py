"""Matrices in the layout in which a CPU multiplies few rows fastest.

It is oneDNN's own layout, in which torch's compiler holds frozen weights, too. In bfloat16 the
products are the same to the last bit, in float32 but for rounding. For up to 16 rows they take 0.4
to 0.7 of the time in bfloat16 (AVX-512) and 0.55 to 0.85 in float32 (AVX2), for 48 rows 0.8; from
some hundred rows on there is little to gain. The operators have no public name, so a build of torch
that lacks them multiplies as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_OPERATORS = "_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported"


class PackedWeight:
    """A second copy of a matrix, made at its first product, and again when the matrix changes.

    A copy of this object is empty.
    """

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._version = (0, 0)
        self._corrections: list[Tensor] = []
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def product(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        corrections: Sequence[Tensor] = (),
        corrected: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Compute `x W^T + bias` without gradients.

        Args:
            x: [N, in], in W's dtype.
            weight: W, [out, in]; multiplied as it is where it cannot be packed.
            bias: [out] or None.
            corrections: small tensors that `corrected` depends on, beside W.
            corrected: computes a matrix [out, in] to multiply by in place of W.

        Returns:
            [N, out].
        """
        if not can_pack(weight):
            return F.linear(x, weight if corrected is None else corrected(), bias)
        version = (weight.data_ptr(), weight._version)
        if (
            self._packed is None
            or self._source is not weight
            or self._version != version
            or len(corrections) != len(self._corrections)
            # By value: torch does not count what its fused optimizers change.
            or not all(map(torch.equal, corrections, self._corrections))
        ):
            matrix = weight.detach() if corrected is None else corrected()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix)
            self._source, self._version = weight, version
            self._corrections = [each.detach().clone() for each in corrections]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return y


def can_pack(weight: Tensor) -> bool:
    """Return True for a matrix on a CPU for whose products torch has the operators."""
    return weight.device.type == "cpu" and weight.dtype in _packed_dtypes()


@functools.cache
def _packed_dtypes() -> tuple[torch.dtype, ...]:
    operators = torch.ops.mkldnn
    available = torch.backends.mkldnn.is_available()
    if not available or not all(hasattr(operators, name) for name in _OPERATORS):
        return ()
    if operators._is_mkldnn_bf16_supported():
        return torch.float32, torch.bfloat16
    return (torch.float32,)
