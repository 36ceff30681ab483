"""The low-rank layer: a frozen linear map plus a small trained one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRALinear(nn.Module):
    """A linear layer whose frozen weight is corrected by a trained product of rank r.

    `y = x W^T + b + (alpha / r) * (x A^T) B^T`

    The layer takes over the base's own `weight` and `bias`, so they keep their names in
    `state_dict()`, and weights tied to them stay tied. B starts at zero, so a new layer
    computes what its base does.

    Paper: LoRA, arXiv 2106.09685.

    Attributes:
        weight: [out, in], in the base's dtype, frozen; the merged weight while `merged`.
        bias: [out] or None, frozen.
        lora_A: [r, in], float32.
        lora_B: [out, r], float32.
        scaling: alpha / r.
        enabled: False makes the layer the base alone, merged or not.
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
        """Wrap `base`, which is frozen by this.

        Args:
            base: the layer to correct.
            r: the rank of the correction, at least 1.
            alpha: the correction is multiplied by `alpha / r`.
            dropout: the probability with which an input of A is dropped in training.
            generator: the source of A's random numbers; torch's global one by default.

        Raises:
            ValueError: `r`, `alpha` or `dropout` is out of its range.
        """
        super().__init__()
        if r < 1:
            raise ValueError(f"r must be at least 1, got {r}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be a positive number, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.register_buffer("_unmerged", None, persistent=False)
        self.train(base.training)

        self.r, self.alpha, self.dropout = r, alpha, dropout
        self.scaling = alpha / r
        self.enabled = True
        # Float32 whatever the base: in bfloat16 a step below 1/256 of a weight rounds away.
        # Drawn on the generator's device, so a seed gives the same A wherever the base is.
        source = generator.device if generator is not None else torch.device("cpu")
        a = torch.empty(r, self.in_features, dtype=torch.float32, device=source)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
        b = torch.zeros(self.out_features, r, dtype=torch.float32, device=base.weight.device)
        self.lora_A = nn.Parameter(a.to(base.weight.device))
        self.lora_B = nn.Parameter(b)

    @property
    def merged(self) -> bool:
        """True while `weight` contains the correction."""
        return self._unmerged is not None

    @property
    def base_weight(self) -> Tensor:
        """The weight without the correction, [out, in]."""
        return self.weight if self._unmerged is None else self._unmerged

    def forward(self, x: Tensor) -> Tensor:
        """Map x: [..., in] to [..., out], the correction computed in x's dtype."""
        weight = self.weight if self.enabled else self.base_weight
        if self.merged or not self.enabled:
            return F.linear(x, weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        y = F.linear(rows, weight, self.bias)
        if self.dropout:
            rows = F.dropout(rows, self.dropout, self.training)
        hidden = F.linear(rows, self.lora_A.to(x.dtype))
        # Added within the product: neither direction makes a second tensor of y's size. B^T is
        # laid out anew (it is small), for autograd multiplies in the order of the memory.
        y.addmm_(hidden, self.lora_B.t().contiguous().to(x.dtype), alpha=self.scaling)
        return y.view(*x.shape[:-1], self.out_features)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Compute `W + (alpha / r) * B A`, [out, in], W the base weight.

        The sum is taken in float32 or wider and rounded to W's dtype.
        """
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        delta = self.scaling * (self.lora_B.to(wide) @ self.lora_A.to(wide))
        return (self.base_weight.to(wide) + delta).to(self.weight.dtype)

    def merge(self) -> None:
        """Put the correction into the weight, as `merged_weight` gives it.

        The old weight is kept aside, for adding and then subtracting would not give it back.

        Raises:
            RuntimeError: the layer is merged already.
        """
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        merged = self.merged_weight()
        self._unmerged = self.weight.detach()
        # A new Parameter: writing into the old one would change what is tied to it.
        self.weight = nn.Parameter(merged, requires_grad=False)

    def unmerge(self) -> None:
        """Put the old weight back, bit by bit.

        Raises:
            RuntimeError: the layer is not merged.
        """
        if self._unmerged is None:
            raise RuntimeError("unmerge: the layer is not merged")
        self.weight = nn.Parameter(self._unmerged, requires_grad=False)
        self._unmerged = None

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, r={self.r}, alpha={self.alpha}"
        )
