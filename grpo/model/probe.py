"""Rows of tokens and a model's own log-probabilities on them, for the check at load time.

Each way of computing that training uses is a function here: a probe -> logits and the tokens that
they belong to.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grpo.model.device import dtype_name
from grpo.model.head import OutputHead, find_decoder
from grpo.model.limits import probe_length, shorten_windows, special_ids
from grpo.tree.token_tree import build_tree

MOST_ROUNDING = 0.5
"""Nats in float32; where rounding explains more, the check could not tell right from wrong."""

ROUNDING = 20
"""How many times the effect of one rounding error a correct forward pass may differ."""

SHARED = 5
"""Tokens that begin all rows."""

Logits = tuple[Tensor, Sequence[int]]
"""[n, V], and the numbers of the tokens, counted through all rows, that they were computed at."""


class Probe:
    """A model, rows of tokens, and the model's own log-probabilities on them.

    Attributes:
        model: the model.
        rows: token ids; all share a prefix, some share more, and one begins another.
        truth: [tokens, V]; the model's own log-probabilities, with eager attention.
        starts: number of each row's first token, counted through all rows.
        all_tokens: the numbers of all tokens.
        noise: what a rounding error at each input embedding changes in the truth, in nats.
    """

    def __init__(self, model: Any, head: OutputHead, rows: list[list[int]]) -> None:
        """Compute the model's own log-probabilities.

        Raises:
            ValueError: they are not finite, or depend on later tokens or on rounding.
        """
        self.model, self.head, self.rows = model, head, rows
        self.decoder = find_decoder(model)
        self.starts = [sum(map(len, rows[:n])) for n in range(len(rows))]
        self.all_tokens = range(sum(map(len, rows)))
        with attention(model, "eager"), torch.no_grad():
            self.truth = _logprobs(own_logits(model, rows))
            with _rounding_error(model):
                noisy = _logprobs(own_logits(model, rows[-1:]))  # the longest row
        self.noise = self._distance(noisy, self.all_tokens[self.starts[-1] :])
        if not math.isfinite(self.noise):
            raise ValueError("its logits are not finite")
        if model.dtype.itemsize >= 4 and ROUNDING * self.noise > MOST_ROUNDING:
            raise ValueError(
                f"a rounding error changes its log-probabilities by {self.noise:.2g} nats"
            )
        self._require_causal()

    def fault(self, compute: Callable[[Probe], Logits]) -> str:
        """Say how logits differ from the model's own; "" if they do not."""
        try:
            with torch.no_grad():
                logits, tokens = compute(self)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # foreign code, called in ways that it may not know
            return f"fails ({describe(error)})"
        distance, bound = self._distance(_logprobs(logits), tokens), ROUNDING * self.noise
        if distance <= bound:
            return ""
        dtype = dtype_name(self.model.dtype)
        return (
            f"does not give the model's own log-probabilities ({distance:.2g} nats apart in "
            f"{dtype}, where rounding explains {bound:.2g})"
        )

    def _require_causal(self) -> None:
        nodes = build_tree(self.rows).nodes
        nodes = nodes[nodes >= 0].to(self.truth.device)  # tokens with equal prefixes: one node
        first = torch.stack([(nodes == node).nonzero()[0, 0] for node in nodes])
        error = self._distance(self.truth[first], self.all_tokens)
        if error > ROUNDING * self.noise:
            raise ValueError(f"its logits depend on later tokens ({error:.2g} nats)")

    def _distance(self, logprobs: Tensor, tokens: Sequence[int]) -> float:
        """Return the largest difference over tokens, as a root mean square over the vocabulary."""
        difference = logprobs - self.truth[torch.tensor(tokens, device=self.truth.device)]
        return float(difference.square().mean(-1).sqrt().max())


def describe(error: Exception) -> str:
    """Return an error of foreign code as one line."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


@contextmanager
def foreign_code(model: Any) -> Iterator[None]:
    """Within this context an error of the model's own code is a ValueError that refuses it."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # called in ways that it may not know
        reason = describe(error)
        raise ValueError(f"{type(model).__name__} is not supported: {reason}") from error


def make_rows(model: Any, max_length: int) -> list[list[int]]:
    """Choose the rows of a model's probe."""
    config = model.config.get_text_config()
    special, length = special_ids(model), probe_length(model, 20)
    random = np.random.default_rng(0)
    allowed = np.array([i for i in range(min(config.vocab_size, 50_000)) if i not in special])
    ids = random.choice(allowed, size=length + 24).tolist()
    shared, first, others = ids[:SHARED], ids[SHARED:14], ids[14:24]
    rows = [
        shared + first,
        shared + first[:4] + others[:6],
        shared + first[:4],
        shared + others[6:9],
        shared + ids[24 : 24 + length - SHARED],
    ]
    return [row[:max_length] for row in rows]


def first_layers(model: Any) -> Any:
    """Copy a model with enough layers to have one of each kind, in float32 or wider.

    Where the layers are not found, all of the model is copied. Long windows are short in the copy.
    """
    decoder = find_decoder(model)
    for module in model.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:  # state of the last call
                setattr(module, key, value.detach())  # a gradient's history cannot be copied
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    stacks = [
        (name, layers)
        for name, layers in decoder.named_children()
        if isinstance(layers, nn.ModuleList) and len(layers) == count
    ]
    if len(stacks) != 1:
        return _copied(model)
    [(name, layers)] = stacks
    kinds: dict[Any, int] = {}
    for n, layer in enumerate(layers):
        kinds.setdefault(_kind(layer), n)
    try:
        setattr(decoder, name, layers[: max(1, *kinds.values()) + 1])
        return _copied(model)
    finally:
        setattr(decoder, name, layers)


def _kind(layer: nn.Module) -> Any:
    """Describe a layer by its modules and their settings, all but its number."""

    def settings(module: nn.Module) -> list[tuple[str, Any]]:
        values = ((k, v) for k, v in vars(module).items() if isinstance(v, int | str | None))
        return [(k, v) for k, v in values if not re.search("idx|index|layer_id", k)]

    return tuple((name, type(m), *settings(m)) for name, m in layer.named_modules())


def _copied(model: Any) -> Any:
    model = copy.deepcopy(model)
    shorten_windows(model, _configs(model))
    narrow = (p for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize < 4)
    return model.float() if any(True for _ in narrow) else model


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Within this context a model computes with an attention implementation of `transformers`."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    set_attention(model, name)
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def set_attention(model: Any, name: str) -> None:
    """Choose the attention implementation of a model and all models inside it."""
    for config in _configs(model):
        config._attn_implementation_internal = name


def _configs(model: Any) -> list[Any]:
    from transformers import PreTrainedModel

    modules = (m for m in model.modules() if isinstance(m, PreTrainedModel))
    return list({id(m.config): m.config for m in modules}.values())


@contextmanager
def _rounding_error(model: Any) -> Iterator[None]:
    """Within this context each input embedding has a rounding error of the model's dtype.

    Of float32 at least: models compute softmax and rotary angles in it, whatever their dtype.
    """

    def change(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(0)
        sign = torch.randint(0, 2, output.shape, generator=random).to(output) * 2 - 1
        eps = max(torch.finfo(dtype).eps for dtype in (output.dtype, torch.float32))
        return output * (1 + eps * sign)

    handle = model.get_input_embeddings().register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def own_logits(model: Any, rows: list[list[int]]) -> Tensor:
    """Compute rows one at a time through a model's own forward: [tokens, V]."""
    ids = [torch.tensor([row], device=model.device) for row in rows]
    return torch.cat([model(input_ids=row, use_cache=False).logits[0] for row in ids])
