"""Frozen linear layers whose weight is held in 8 or 4 bits, alone or below a LoRA layer.

Blocks of 64 numbers share a float32 scale, their largest absolute value: 8.5 or 4.5 bits per
weight. The codes between -1 and 1 are 255 evenly spaced ones for 8 bits, NF4's 16 for 4 bits.
Every pass computes with the dequantised matrix, which is never kept: values and gradients are
those of a plain linear layer with that matrix as weight.

Paper: QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lora.layers import LoRALinear

Bits = Literal[8, 4]

BLOCK = 64
"""Weights per scale, as in `transformers`' `BitsAndBytesConfig`; a matrix has whole blocks."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def import_bitsandbytes() -> Any:
    """Import the library that quantises, which also registers its operators with torch.

    Raises:
        ImportError: it is not installed.
    """
    # It warns on some CPUs that it lacks a kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(
            f"quantised weights need bitsandbytes: install the extra 'quantized' ({error})"
        ) from error
    return bitsandbytes


class QuantizedWeight(nn.Module):
    """A frozen matrix of 8 or 4 bits per number.

    Attributes:
        shape: (out, in).
        bits: 8 or 4.
        packed: uint8; one number per byte, or two.
    """

    packed: Tensor
    _scales: Tensor
    _codes: Tensor
    _like: Tensor

    def __init__(self, weight: Tensor, bits: Bits) -> None:
        """Quantise a matrix where it is.

        Args:
            weight: [out, in]; a multiple of `BLOCK` numbers.
            bits: 8 or 4.

        Raises:
            ImportError: bitsandbytes is not installed.
            ValueError: it has no whole number of blocks, or `bits` is another number.
        """
        super().__init__()
        functional = import_bitsandbytes().functional
        if bits not in (8, 4):
            raise ValueError(f"bits must be 8 or 4, got {bits!r}")
        if weight.dim() != 2 or not weight.numel() or weight.numel() % BLOCK:
            raise ValueError(
                f"a quantised weight must be a matrix of a multiple of {BLOCK} numbers, got "
                f"{list(weight.shape)}"
            )
        self.shape, self.bits = tuple(weight.shape), bits
        source = weight.detach() if weight.dtype in _DTYPES else weight.detach().float()
        if bits == 4:
            packed, state = functional.quantize_4bit(source, blocksize=BLOCK, quant_type="nf4")
        else:
            codes = functional.create_linear_map(signed=True, total_bits=8)
            packed, state = functional.quantize_blockwise(source, code=codes, blocksize=BLOCK)
        self.register_buffer("packed", packed)
        # As integers, so that `model.bfloat16()` does not round them.
        self.register_buffer("_scales", state.absmax.view(torch.int32))
        self.register_buffer("_codes", state.code.view(torch.int32))
        self.register_buffer("_like", weight.detach().new_empty(0))  # has the base's dtype

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrix before it was quantised, changed by `model.to(dtype)`."""
        return self._like.dtype

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """Compute the matrix, [out, in], in `dtype` or the base's."""
        dtype = dtype or self.dtype
        narrow = dtype if dtype in _DTYPES else torch.float32
        scales, codes = self._scales.view(torch.float32), self._codes.view(torch.float32)
        operators = torch.ops.bitsandbytes
        if self.bits == 8:
            matrix = operators.dequantize_blockwise(self.packed, scales, codes, BLOCK, narrow)
        else:
            # One row per block: the CPU's operator is wrong where a block crosses rows.
            rows = (scales.numel(), BLOCK)
            matrix = operators.dequantize_4bit(self.packed, scales, BLOCK, "nf4", rows, narrow)
        result: Tensor = matrix.view(self.shape).to(dtype)
        return result

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute `x W^T + b` in x's dtype; the backward pass dequantises W once more."""
        y: Tensor = _Product.apply(x, self, bias)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """Describe the matrix for `print(model)`."""
        return f"shape={list(self.shape)}, bits={self.bits}"


class _Product(torch.autograd.Function):
    """`y = x W^T + b` with its gradient in x, without keeping W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight.dequantize(grad.dtype), None, None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantised weight; `apply_lora` adds a correction to it.

    Code that reads `weight` gets the dequantised matrix, computed at each access.

    Attributes:
        quantized: the weight.
        bias: [out] or None, frozen.
    """

    def __init__(self, base: nn.Linear, bits: Bits) -> None:
        """Quantise the weight of `base`, and freeze its bias.

        Raises:
            ImportError: bitsandbytes is not installed.
            ValueError: see `QuantizedWeight`.
        """
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.quantized, self.bias = QuantizedWeight(base.weight, bits), base.bias
        self.requires_grad_(False)
        self.train(base.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised matrix, [out, in]."""
        return self.quantized.dequantize()

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        y: Tensor = self.quantized(input, self.bias)
        return y


class LoRAQuantizedLinear(LoRALinear):
    """A LoRA layer on a quantised base: W is the dequantised matrix everywhere.

    Attributes:
        quantized: W, frozen.
    """

    quantized: QuantizedWeight
    _merged: Tensor | None

    def _take_base(self, base: nn.Linear) -> None:
        if not isinstance(base, QuantizedLinear):
            raise TypeError(f"base must be a QuantizedLinear, got {type(base).__name__}")
        self.quantized, self.bias = base.quantized, base.bias
        self.register_buffer("_merged", None, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised matrix, or while merged the one with the correction, [out, in]."""
        return self.base_weight if self._merged is None else self._merged

    @property
    def merged(self) -> bool:
        """True while `weight` contains the correction."""
        return self._merged is not None

    @property
    def base_weight(self) -> Tensor:
        """The dequantised matrix, [out, in], in the dtype of the base."""
        return self.quantized.dequantize()

    def _base_in(self, dtype: torch.dtype) -> Tensor:
        return self.quantized.dequantize(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x: [..., in] to [..., out], all of it computed in x's dtype."""
        if self.enabled:
            return super().forward(x)
        y: Tensor = self.quantized(x, self.bias)
        return y

    def merge(self) -> None:
        """Compute with `merged_weight()`, in the dtype of the base, until `unmerge`.

        Raises:
            RuntimeError: the layer is already merged.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is already merged")
        self._merged = self.merged_weight()

    def unmerge(self) -> None:
        """Compute with the quantised weight and the correction again.

        Raises:
            RuntimeError: the layer is not merged.
        """
        if not self.merged:
            raise RuntimeError("unmerge: the layer is not merged")
        self._merged = None
