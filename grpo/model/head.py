"""From last hidden states to logits, as the model's own forward computes them.

Some models scale what enters or leaves the output layer (Granite, Cohere, MiniCPM), some cap it
(Gemma 2: `cap * tanh(logits / cap)`, arXiv 2408.00118). Update and generator call the decoder and
the output layer themselves, so they have to do the same. Configurations name these numbers
differently; here they are measured on the model's own code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SMALL, LARGE = 1e-6, 1e9
"""Logits that a cap leaves as they are, and logits that it cuts off."""

TOLERANCE = 1e-3
"""Relative; a model in bfloat16 may round more: measure a float32 copy."""


@dataclass(frozen=True)
class OutputHead:
    """`logits = cap * tanh(scale * layer(input_scale * hidden) / cap)`.

    Attributes:
        layer: the output layer, [*, D] -> [*, V].
        input_scale: factor of the hidden states.
        scale: factor of the layer's output.
        cap: bound of the logits' absolute value; None without one.
        product: computes `layer` from (input, weight, bias) where no gradient is needed; None for
            the layer itself.
    """

    layer: Any
    input_scale: float = 1.0
    scale: float = 1.0
    cap: float | None = None
    product: Callable[[Tensor, Tensor, Tensor | None], Tensor] | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map hidden states [*, D] to logits [*, V], in float32 or wider if they are changed."""
        if self.input_scale != 1:
            hidden = hidden * self.input_scale
        hidden = hidden.to(self.layer.weight.dtype)  # some are kept in float32
        logits: Tensor
        if self.product is None or torch.is_grad_enabled():
            logits = self.layer(hidden)
        else:
            logits = self.product(hidden, self.layer.weight, self.layer.bias)
        if self.scale == 1 and self.cap is None:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def find_decoder(model: Any) -> Any:
    """Return the part of a causal language model that computes the last hidden states.

    Raises:
        ValueError: it has no such part.
    """
    from transformers import PreTrainedModel

    parts = [model.get_decoder(), model.base_model, *model.children()]
    for part in parts:
        if part is not model and isinstance(part, PreTrainedModel):
            return part
    raise ValueError("it has no decoder apart from its output layer")


@torch.no_grad()
def measure_head(model: Any) -> OutputHead:
    """Measure what a model does between its last hidden states and its logits.

    The model's own forward is run with chosen hidden states in place of the decoder's, and with
    chosen numbers in place of the output layer's: in float64, or in float32 on a device
    without float64.

    Args:
        model: a `transformers` causal language model in float32 or wider.

    Raises:
        ValueError: it does something else than scale and cap.
    """
    decoder, layer = find_decoder(model), model.get_output_embeddings()
    if layer is None:
        raise ValueError("it has no output layer")
    wide = torch.float32 if model.device.type == "mps" else torch.float64
    random = torch.Generator().manual_seed(0)
    seen: dict[str, Tensor] = {}

    def give_hidden(module: nn.Module, inputs: Any, output: Any) -> Any:
        own = getattr(output, "last_hidden_state", None)
        if own is None:
            raise ValueError(f"{type(module).__name__} returns no last_hidden_state")
        seen["hidden"] = torch.randn(own.shape, generator=random).to(own.device, wide)
        output.last_hidden_state = seen["hidden"]
        return output

    def take_input(module: nn.Module, inputs: Any) -> Any:
        seen["input"] = inputs[0]
        return (inputs[0].to(layer.weight.dtype), *inputs[1:])

    def give_logits(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        ends = math.log10(SMALL), math.log10(LARGE)
        size = torch.logspace(*ends, output.shape[-1], dtype=wide, device=output.device)
        seen["logits"] = torch.cat([size, -size]).view(2, -1).expand(output.shape)
        return seen["logits"]

    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    with _hooks(
        decoder.register_forward_hook(give_hidden),
        layer.register_forward_pre_hook(take_input),
        layer.register_forward_hook(give_logits),
    ):
        try:
            result = model(input_ids=ids, use_cache=False).logits[0].cpu().double()
        except RuntimeError as error:
            if "hidden" in seen and "input" not in seen:  # a module between them met float64
                raise ValueError("its output layer does not read its last hidden states") from error
            raise
    if seen.keys() != {"hidden", "input", "logits"} or result.shape != seen["logits"].shape[1:]:
        raise ValueError("its logits do not come from its output layer")
    hidden, into, given = (seen[key].cpu().double() for key in ("hidden", "input", "logits"))
    given = given[0]

    if into.shape != hidden.shape:
        raise ValueError("its output layer does not read its last hidden states")
    input_scale = _rounded((into * hidden).sum() / hidden.square().sum())
    _require(into, input_scale * hidden, "its output layer does not read its last hidden states")
    scale = _rounded(result[0, 0] / given[0, 0])
    cap = None
    if abs(result[0, -1]) < abs(scale * given[0, -1]) / 2:
        cap = _rounded(abs(result[0, -1]))
    expected = given * scale if cap is None else torch.tanh(given * scale / cap) * cap
    _require(result, expected, "it does more between its output layer and its logits than scale")
    return OutputHead(layer, input_scale, scale, cap)


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.12g}")


def _require(got: Tensor, expected: Tensor, fault: str) -> None:
    if not torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * SMALL):
        raise ValueError(fault)


@contextmanager
def _hooks(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
