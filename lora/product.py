"""The product of a frozen matrix with a low-rank correction, as one autograd function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Base = Callable[[torch.dtype], Tensor]
"""The frozen matrix [out, in] for a product in a dtype; see `LoRALinear`."""

FEW_ROWS = 64
"""Up to so many rows a CPU computes the correction in float32; see `add_correction`."""


def corrected_product(
    x: Tensor, base: Base, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """Compute `y = x W^T + bias + scaling * (x A^T) B^T`.

    Args:
        x: [N, in].
        base: W; called in the forward and in the backward pass.
        bias: [out] or None; no gradient is computed.
        a: [r, in]; the correction is computed in x's dtype.
        b: [out, r].
        scaling: factor of the correction.

    Returns:
        [N, out].
    """
    a, b = a.to(x.dtype), b.to(x.dtype)
    y: Tensor = _CorrectedProduct.apply(x, base, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return y


def add_correction(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Compute `y + scaling * (x A^T) B^T` without gradients; y may be changed.

    A CPU multiplies a few rows by thin matrices faster in float32 than in bfloat16, conversions
    included; the sum is then rounded once.

    Args:
        y: [N, out].
        x: [N, in], in y's dtype.
        a: [r, in], float32.
        b: [out, r], float32.
        scaling: factor of the correction.

    Returns:
        [N, out], in y's dtype.
    """
    dtype = y.dtype
    if x.device.type == "cpu" and len(x) <= FEW_ROWS:
        wide = torch.promote_types(dtype, torch.float32)
        x, y = x.to(wide), y.to(wide)
    low = x @ a.to(x.dtype).t()
    return y.addmm_(low, b.to(x.dtype).t(), alpha=scaling).to(dtype)


class _CorrectedProduct(torch.autograd.Function):
    """The product and its gradients in x, A and B.

    The corrections are added within the products, in place: neither pass makes another tensor of
    the size of x or y, and both launch a third of the kernels that autograd's own would.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Base, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        y, hidden = F.linear(x, base(x.dtype), bias), x @ a.t()
        ctx.save_for_backward(x, a, b, hidden)
        ctx.base, ctx.scaling = base, s
        return y.addmm_(hidden, b.t(), alpha=s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, hidden = ctx.saved_tensors
        s, grad_x, grad_a, grad_b = ctx.scaling, None, None, None
        low = s * (grad @ b)
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ ctx.base(grad.dtype)).addmm_(low, a)
        if ctx.needs_input_grad[3]:
            grad_a = low.t() @ x
        if ctx.needs_input_grad[4]:
            grad_b = grad.t() @ hidden * s
        return grad_x, None, None, grad_a, grad_b, None
