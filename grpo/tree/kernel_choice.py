"""From how many nodes of a token tree on its attention is computed by flex_attention.

Which kernel is faster (`grpo.tree.attention`) depends on the GPU, the model and the size of the
tree: `grpo doctor` measures it and saves the choice in the user's cache, by device and model.
Without a choice, and on everything but CUDA, it is SDPA.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


class Heads(NamedTuple):
    """What a kernel's speed depends on, apart from the tree.

    Attributes:
        device: where the tensors are.
        dtype: their dtype.
        heads: heads of the queries.
        kv_heads: heads of keys and values.
        width: numbers per head of queries and keys.
        value_width: numbers per head of values.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    width: int
    value_width: int

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> Heads:
        """Describe tensors [1, H, L, D], [1, H_kv, M, D] and [1, H_kv, M, D_v]."""
        shapes = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
        return cls(query.device, query.dtype, *shapes)

    @property
    def name(self) -> str:
        """The choice's name in the file: the GPU, torch's version, the dtype and the heads."""
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{torch.cuda.get_device_name(self.device)}, torch {torch.__version__}, {dtype}, "
            f"{self.heads} heads, {self.kv_heads} of keys, {self.width} and {self.value_width} wide"
        )


def choices_file() -> Path:
    """Return the file of the choices, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "grpo-browser", "attention.json")


def read_choices() -> dict[str, int | None]:
    """Read the number of nodes from which on flex_attention is used, None for never, by name.

    A file that cannot be read, or holds something else, is as none.
    """
    try:
        found = json.loads(choices_file().read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if v is None or (type(v) is int and v > 0)}


def save_choice(heads: Heads, least_nodes: int | None) -> None:
    """Save from how many nodes on flex_attention is used, None for never.

    Raises:
        OSError: the file cannot be written.
    """
    choices, path = read_choices() | {heads.name: least_nodes}, choices_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(choices, indent=2, sort_keys=True) + "\n")
    unfinished.replace(path)  # whoever reads it meanwhile finds the old one
    least_nodes_for_flex.cache_clear()


@functools.cache
def least_nodes_for_flex(heads: Heads) -> int | None:
    """Return the saved choice, None for SDPA alone; say so once where it is flex_attention."""
    if heads.device.type != "cuda" or not torch.cuda.is_available():
        return None
    least = read_choices().get(heads.name)
    if least is not None:
        # As a warning, which Python shows by default: `info` would reach nobody.
        _log.warning("attention: flex_attention from %d nodes of a tree on (grpo doctor)", least)
    return least
