"""An optimizer's state from a file: held against the optimizer before a step fails with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore what `optimizer.state_dict()` returned, if it is of an optimizer like this one.

    Raises:
        LookupError, TypeError, ValueError: it is not.
    """
    before = [_options(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for options, group in zip(before, optimizer.param_groups, strict=True):
        if _options(group) != options or not isinstance(group["lr"], float):
            raise ValueError(f"the optimizer must have the options {options}")
    for p, of_p in optimizer.state.items():
        for name, value in of_p.items():
            if not isinstance(value, Tensor) or value.shape not in (p.shape, ()):
                raise ValueError(f"the optimizer's {name} must have the shape {list(p.shape)}")


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a group of parameters that no schedule changes."""
    return {name: value for name, value in group.items() if name not in ("params", "lr")}
