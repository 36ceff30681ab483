"""The check of a model at load time: what training computes must be the model's own numbers.

The model's own forward pass, with eager attention, one row at a time and without a cache, is the
truth. Everything that update and generator compute in another way (`grpo.model.ways`) is held
against it on a few rows. What differs by more than the model's own rounding is not used; where
nothing is left, the model is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grpo.model import ways
from grpo.model.forward import ForwardMode, ForwardPlan, recomputed_layers
from grpo.model.head import measure_head
from grpo.model.limits import length_limit
from grpo.model.packed import may_pack, prepare_packed
from grpo.model.probe import (
    Logits,
    Probe,
    describe,
    first_layers,
    foreign_code,
    make_rows,
    set_attention,
)
from grpo.tree.layers import prepare


class AdapterCheck(NamedTuple):
    """What the check does with an adapter; both functions take the model.

    Attributes:
        perturb: makes the adapter change what the model computes.
        merged: within this context the adapter is merged into the model's weights.
    """

    perturb: Callable[[nn.Module], None]
    merged: Callable[[nn.Module], AbstractContextManager[None]]


def check_model(
    model: Any,
    wanted: ForwardMode | Literal["auto"] = "auto",
    *,
    adapter: AdapterCheck | None = None,
    activation_checkpointing: bool = False,
) -> ForwardPlan:
    """Choose how a model's log-probabilities are computed, so that they are its own.

    Two models are checked: a float32 copy of the first layers with a perturbed adapter, because
    rounding to bfloat16 would hide a small difference, and the whole model in its own dtype.

    Args:
        model: a `transformers` causal language model that has passed `check_weights_stay`;
            `prepare`d if the tree is chosen.
        wanted: "auto" chooses the tree where it is right, and warns where it is not.
        adapter: how to perturb and merge the model's adapter; None without one.
        activation_checkpointing: True to check the gradient with recomputed layers as well.

    Raises:
        ValueError: nothing, or not the wanted forward pass, gives the model's numbers.
    """
    name = type(model).__name__
    model.eval()
    with foreign_code(model):
        max_length = length_limit(model)
        rows = make_rows(model, max_length)
        copy = first_layers(model)
        if adapter:
            adapter.perturb(copy)
        measured = measure_head(copy)
        head = replace(measured, layer=model.get_output_embeddings())
        probes = [Probe(copy, measured, rows), Probe(model, head, rows)]
    mode, use_cache, conv_width, packed, notes = _choose(name, probes, wanted)
    if notes:
        warnings.warn(f"{name}: {'; '.join(notes)}", stacklevel=4)
    if adapter:
        with adapter.merged(copy):
            fault = probes[0].fault(ways.own)
        if fault:
            raise ValueError(f"the adapter does not fit {name}: merged into its weights it {fault}")
    plan = ForwardPlan(mode, use_cache, conv_width, head, max_length, packed)
    if activation_checkpointing and (fault := _gradient_fault(probes[0], plan)):
        raise ValueError(f"activation_checkpointing does not fit {name}: {fault}")
    return plan


def check_weights_stay(model: Any) -> None:
    """Check that a forward pass leaves the weights as they are (RWKV's first one divides some).

    Args:
        model: a `transformers` causal language model; not called before, or this may come too late.

    Raises:
        ValueError: it changes them, or fails.
    """
    before = [p._version for p in model.eval().parameters()]
    with foreign_code(model), torch.no_grad():
        ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
        model(input_ids=ids, use_cache=False)
    if [p._version for p in model.parameters()] != before:
        name = type(model).__name__
        raise ValueError(f"{name} is not supported: its own forward pass changes its weights")


def _choose(
    name: str, probes: Sequence[Probe], wanted: ForwardMode | Literal["auto"]
) -> tuple[ForwardMode, bool, int, bool, list[str]]:
    """Choose the forward pass.

    Returns:
        The mode, whether its cache is right, the convolutions' width, whether rows can be packed,
        and what to say.
    """
    notes = []
    if wanted != "padded":
        try:
            conv_width = max(prepare(probe.decoder) for probe in probes)
            fault = _first_fault(probes, ways.tree, ways.tree_cache)
            fault = fault or probes[0].fault(ways.shared_prefix)
        except ValueError as unsupported:
            fault = f"does not support {unsupported}"
        if not fault:
            return "tree", True, conv_width, False, []
        if wanted == "tree":
            raise ValueError(f"the token tree does not fit {name}: it {fault}")
        notes.append(f"the token tree {fault}; every row is computed by itself (forward=padded)")
    for attention in ("sdpa", "eager"):
        for probe in probes:
            set_attention(probe.model, attention)
        fault = _first_fault(probes, ways.own, ways.padded)
        if not fault:
            break
    else:
        raise ValueError(f"{name} is not supported: as padded rows it {fault}")
    packed = _packs(probes, attention)
    if not _first_fault(probes, ways.cached):
        return "padded", True, 0, packed, notes
    if fault := _first_fault(probes, ways.uncached):
        raise ValueError(f"{name} is not supported: decoding without a cache {fault}")
    notes.append("its cache is not right, so every token is computed again at each decoding step")
    return "padded", False, 0, packed, notes


def _packs(probes: Sequence[Probe], attention: str) -> bool:
    """Tell whether padded rows can be packed, and choose the attention that does it if so."""
    if not all(may_pack(probe.model) for probe in probes):
        return False
    name = prepare_packed(attention)
    for probe in probes:
        set_attention(probe.model, name)
    if not _first_fault(probes, ways.packed):
        return True
    for probe in probes:
        set_attention(probe.model, attention)
    return False


def _first_fault(probes: Sequence[Probe], *compute: Callable[[Probe], Logits]) -> str:
    return next((fault for way in compute for probe in probes if (fault := probe.fault(way))), "")


def _gradient_fault(probe: Probe, plan: ForwardPlan) -> str:
    """Say how recomputed layers change the gradient; "" if they do not."""
    try:
        expected = _gradient(probe, plan, nullcontext())
        change = _gradient(probe, plan, recomputed_layers(probe.decoder)) - expected
    except Exception as fault:  # foreign code, called in ways that it may not know
        return describe(fault)
    error = float(change.norm() / expected.norm())
    return "" if error < 1e-3 else f"the gradient differs by {error:.2g} of its norm"


def _gradient(probe: Probe, plan: ForwardPlan, layers: AbstractContextManager[None]) -> Tensor:
    """Compute the gradient of some log-probabilities in the trained weights, as one vector."""
    trained = [p for p in probe.model.parameters() if p.requires_grad]
    prefix = None
    with torch.enable_grad(), layers:
        if plan.mode == "tree":
            (logits, _), prefix = ways.in_parts(probe)
        else:
            logits, _ = ways.packed(probe) if plan.packed else ways.padded(probe)
    torch.log_softmax(logits, -1)[:, ::7].sum().backward()
    if prefix:
        prefix.backward()
    gradient = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    probe.model.zero_grad()
    return gradient
