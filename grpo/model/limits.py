"""How long a model's rows may be, and which lengths and tokens the load-time check has to know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from grpo.model.head import find_decoder

LIMIT_NAMES = (
    *("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length"),
    "max_target_positions",
)
UNLIMITED = 2**20
"""Tokens of a model that names no limit, as recurrent ones."""

LENGTH_NAMES = re.compile("window|chunk|block_size|topk|original_max_position")
"""Numbers of a configuration that are lengths at which a model may change its behaviour."""

LONGEST_PROBE = 264
"""Tokens; a row of the check is longer than each such length below that."""

WINDOW_NAMES = re.compile("^(?!max_).*(window|attention_chunk_size)")
SHORT_WINDOW = 12
"""Tokens; windows that no row of the check would leave are made this short in the copy."""


def named_limit(config: Any) -> int:
    """Return the longest row, in tokens, that a model's configuration names."""
    text = config.get_text_config()
    named = (getattr(text, name, None) for name in LIMIT_NAMES)
    return min((n for n in named if isinstance(n, int) and n > 0), default=UNLIMITED)


def length_limit(model: Any) -> int:
    """Return the longest row, in tokens, that a model computes alike whatever else is in the call.

    The rotary embeddings of some models change all angles when the longest position of the call
    exceeds a length (LongRoPE, arXiv 2402.13753; dynamic NTK): a token's hidden state then depends
    on tokens after it and on other rows. Up to that length the model is an ordinary one.
    """
    limit = named_limit(model.config)
    for module in find_decoder(model).modules():
        if any("inv_freq" in name for name, _ in module.named_buffers(recurse=False)):
            for kind in _layer_types(module):
                limit = rotary_limit(module, kind, limit)
    return limit


def short_rope_length(config: Any) -> int:
    """Return the length up to which LongRoPE takes its short factors; 0 for other models.

    Args:
        config: of a model, of `transformers`.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # per layer type
    long = [kind for kind in kinds if kind.get("rope_type") == "longrope"]
    return min((kind["original_max_position_embeddings"] for kind in long), default=0)


def probe_length(model: Any, shortest: int) -> int:
    """Return the length of the check's longest row: past each change of behaviour within reach."""
    values = model.config.get_text_config().to_dict().items()
    lengths = [v for k, v in values if isinstance(v, int) and LENGTH_NAMES.search(k)]
    return max([shortest, *(n + 8 for n in lengths if n + 8 <= LONGEST_PROBE)])


def shorten_windows(model: Any, configs: Iterable[Any]) -> None:
    """Make the windows of a copy so short that rows of the check leave them.

    A forward pass that ignores the model's window, or a cache that applies one which the model
    ignores, gives the right numbers until a row is longer than the window.

    Args:
        model: a copy; its modules are changed.
        configs: its configurations, which are changed as well.
    """
    long: set[int] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if isinstance(value, int) and value + 8 > LONGEST_PROBE and WINDOW_NAMES.match(name):
                long.add(value)
                setattr(config, name, SHORT_WINDOW)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, int) and value in long and re.search("window|chunk", name):
                setattr(module, name, SHORT_WINDOW)


def special_ids(model: Any) -> set[int]:
    """Return the tokens that a configuration gives a meaning, as that of an image or of padding."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in config.to_dict().items():
            if re.search("token_id|token_index", name):
                found |= {
                    i for i in (value if isinstance(value, list) else [value]) if i is not None
                }
    return found


def _layer_types(module: nn.Module) -> list[str | None]:
    """Return the kinds of layers for which a rotary embedding has angles of their own."""
    kinds = getattr(module, "layer_types", None)
    return sorted(set(kinds)) if kinds else [None]


def rotary_limit(module: Any, kind: str | None, limit: int) -> int:
    """Return the longest call, at most `limit`, in which short rows keep their angles."""
    buffer = next(module.buffers())
    x = torch.zeros(1, 1, 1, dtype=torch.float32, device=buffer.device)
    options = {} if kind is None else {"layer_type": kind}

    def angles(*positions: int) -> Tensor:
        ids = torch.tensor([positions], device=buffer.device)
        return torch.stack([table[..., :2, :] for table in module(x, ids, **options)])

    def is_kept(length: int) -> bool:
        changed = angles(0, 1, length - 1)
        return torch.equal(short, changed) & torch.equal(short, angles(0, 1))

    try:
        short = angles(0, 1)
        if is_kept(limit):
            return limit
    except (TypeError, ValueError, RuntimeError):  # another kind of module: the check decides
        return limit
    kept, changed = 2, limit
    while changed - kept > 1:
        middle = (kept + changed) // 2
        kept, changed = (middle, changed) if is_kept(middle) else (kept, middle)
    angles(0, 1)
    return kept
