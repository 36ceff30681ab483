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


def corrected_product(
    x: Tensor, base: Base, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """Compute `y = x W^T + bias + scaling * (x A^T) B^T`.

    Args:
        x: [N, in].
        base: W; called in the forward and in the backward pass.
        bias: [out] or None; no gradient is computed.
        a: [r, in], in x's dtype.
        b: [out, r], in x's dtype.
        scaling: factor of the correction.

    Returns:
        [N, out].
    """
    y: Tensor = _CorrectedProduct.apply(x, base, bias, a, b, scaling)  # type: ignore[no-untyped-call]
    return y


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
