"""The low-rank layer: a frozen linear layer plus a trained low-rank correction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora.packed import PackedWeight, can_pack
from lora.product import add_correction, corrected_product


class LoRALinear(nn.Module):
    """A linear layer whose frozen weight is corrected by a trained product of rank r.

    `y = x W^T + b + (alpha / r) * (x A^T) B^T`

    The layer holds the base's `weight` and `bias` themselves, so they keep their names in
    `state_dict()`, and tied weights stay tied. B starts at zero, so a new layer computes what its
    base does.

    Paper: LoRA, arXiv 2106.09685.

    Attributes:
        weight: [out, in], in the base's dtype, frozen; the merged weight while merged.
        bias: [out] or None, frozen.
        lora_A: [r, in], float32.
        lora_B: [out, r], float32.
        scaling: alpha / r.
        enabled: False to compute without the correction, merged or not.
        packed: multiplies where no gradient is needed; None for the weight itself.
    """

    _unmerged: Tensor | None

    def __init__(
        self,
        base: nn.Linear,
        r: int,
        alpha: float,
        dropout: float = 0.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Wrap `base` and freeze it.

        Args:
            base: the layer to correct.
            r: rank of the correction, at least 1.
            alpha: the correction is multiplied by `alpha / r`.
            dropout: probability with which an input of A is dropped in training.
            generator: random number generator for A; None for torch's global one.

        Raises:
            ValueError: `r`, `alpha` or `dropout` is out of range.
        """
        super().__init__()
        if not isinstance(r, int):
            raise TypeError(f"r must be an integer, got {r!r}")
        if r < 1:
            raise ValueError(f"r must be at least 1, got {r}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be a positive number, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.in_features, self.out_features = base.in_features, base.out_features
        self._take_base(base)
        self.requires_grad_(False)
        self.register_buffer("_unmerged", None, persistent=False)
        self.train(base.training)

        self.r, self.alpha, self.dropout = r, alpha, dropout
        self.scaling = alpha / r
        self.enabled = True
        self.packed: PackedWeight | None = None
        # Float32 for every base: in bfloat16 a step below 1/256 of a weight is rounded away. Drawn
        # on the generator's device, so that a seed gives the same A on every device.
        source = generator.device if generator is not None else torch.device("cpu")
        a = torch.empty(r, self.in_features, dtype=torch.float32, device=source)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        b = torch.zeros(self.out_features, r, dtype=torch.float32, device=base.weight.device)
        self.lora_A = nn.Parameter(a.to(base.weight.device))
        self.lora_B = nn.Parameter(b)

    def _take_base(self, base: nn.Linear) -> None:
        self.weight, self.bias = base.weight, base.bias

    def _base_in(self, dtype: torch.dtype) -> Tensor:
        """The base weight for a product in `dtype`; a quantised one is computed at each call."""
        return self.weight

    @property
    def merged(self) -> bool:
        """True while `weight` contains the correction."""
        return self._unmerged is not None

    @property
    def base_weight(self) -> Tensor:
        """The weight without the correction, [out, in]."""
        return self.weight if self._unmerged is None else self._unmerged

    def forward(self, x: Tensor) -> Tensor:
        """Map x: [..., in] to [..., out], the correction computed in x's dtype or wider."""
        if self.merged or not self.enabled:
            return F.linear(x, self.weight if self.enabled else self.base_weight, self.bias)
        rows, a, b = x.reshape(-1, self.in_features), self.lora_A, self.lora_B
        if self.dropout and self.training:
            low = self.scaling * F.dropout(rows, self.dropout) @ a.to(x.dtype).t()
            y = F.linear(rows, self._base_in(x.dtype), self.bias) + low @ b.to(x.dtype).t()
        elif torch.is_grad_enabled():
            y = corrected_product(rows, self._base_in, self.bias, a, b, self.scaling)
        else:
            y = self._product(rows)
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, rows: Tensor) -> Tensor:
        """Map rows: [N, in] to [N, out] without gradients."""
        a, b, weight = self.lora_A, self.lora_B, self._base_in(rows.dtype)
        if self.packed and weight.dtype == torch.float32 and can_pack(weight):
            # One product instead of three; adding to the matrix changes the last bits alone.
            return self.packed.product(rows, weight, self.bias, (a, b), self.merged_weight)
        multiply = F.linear if self.packed is None else self.packed.product
        return add_correction(multiply(rows, weight, self.bias), rows, a, b, self.scaling)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Compute `W + (alpha / r) * B A`, [out, in], with W the base weight.

        The sum is computed in float32 or wider and rounded to W's dtype.
        """
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        weight, a, b = (x.to(wide) for x in (self.base_weight, self.lora_A, self.lora_B))
        return torch.addmm(weight, b, a, alpha=self.scaling).to(self.weight.dtype)

    def merge(self) -> None:
        """Replace the weight by `merged_weight()`.

        The old weight is kept, since adding and then subtracting would not restore it exactly.

        Raises:
            RuntimeError: the layer is already merged.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is already merged")
        merged = self.merged_weight()
        self._unmerged = self.weight.detach()
        # A new Parameter, since writing into the old one would change weights tied to it.
        self.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Restore the old weight, bit by bit.

        Raises:
            RuntimeError: the layer is not merged.
        """
        if self._unmerged is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.weight = nn.Parameter(self._unmerged, requires_grad=False)
        self._unmerged = None

    def extra_repr(self) -> str:
        """Describe the layer for `print(model)`."""
        names = "in_features", "out_features", "r", "alpha", "enabled", "merged"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
