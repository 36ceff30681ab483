"""Check of the tree's attention: its two kernels agree; on a GPU the faster one is chosen."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo.doctor.context import GROUP_SIZE, TOKENS, Context, Failed
from grpo.doctor.machine import TOLERANCES
from grpo.doctor.rates import seconds_per_call, synchronize
from grpo.errors import one_line_reason
from grpo.model.forward import TreeLayout
from grpo.model.policy import Policy
from grpo.tree.kernel_choice import Heads, choices_file, save_choice
from grpo.tree.layers import tree_attention, tree_forward
from grpo.tree.token_tree import TokenTree, build_tree

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SIZES = (1024, 4096, 16384)
"""Nodes of the trees that are measured on a GPU; on a CPU the kernels are only compared."""

ON_CPU = 512
SHARED, PAGE = 170, 150
"""Tokens that begin all prompts, and those of a page after them."""

PADDED_ROWS = 32
"""Rows that are measured for the yardstick, whose time is taken in proportion."""


class Timing(NamedTuple):
    """Seconds of forward and backward in one layer, over a tree of so many nodes.

    Attributes:
        nodes: of `SIZES`; the tree has a few more.
        sdpa, flex: of the tree's kernels.
        padded: of the same rows, each by itself, with SDPA's causal kernel (flash attention in half
            precision).
        first: of flex_attention's first call, which may compile it.
    """

    nodes: int
    sdpa: float
    flex: float
    padded: float
    first: float


class _Kernel(TreeLayout):
    """A tree's layout with a given kernel, which keeps what attention it was used for."""

    def __init__(self, tree: TokenTree, device: torch.device, width: int = 0, flex: bool = False):
        super().__init__(tree, width, device)
        self.flex, self.heads = flex, dict[Heads, None]()

    def block_mask(self, heads: Heads) -> BlockMask | None:
        self.heads[heads] = None
        return self._block_mask if self.flex else None


def attention(context: Context) -> str:
    """Compare the kernels of the tree's attention; on CUDA measure them and save the choice."""
    policy = context.policy
    if policy.forward_mode == "padded":
        implementation = policy.model.config.get_text_config()._attn_implementation
        return f"{'packed' if policy.packed else 'padded'} rows, by {implementation}"
    parts = []
    for heads in _heads(policy):
        tree, _ = pages(SIZES[0] if policy.device.type == "cuda" else ON_CPU)
        try:
            error = difference(heads, tree)
        except (NotImplementedError, RuntimeError) as reason:
            _save(heads, None)
            parts.append(f"SDPA; flex_attention does not run here ({one_line_reason(reason)})")
            continue
        context.measured["attention_difference"] = error
        most = 3 * TOLERANCES[heads.dtype]  # several products, and gradients
        if not error <= most:
            _save(heads, None)
            raise Failed(
                f"flex_attention differs from SDPA by {error:.1g} of its norm, expected at most "
                f"{most:g}: SDPA is used; report it"
            )
        if policy.device.type != "cuda":
            parts.append(
                "SDPA in chunks of the tree; flex_attention, not compiled, differs by "
                f"{error:.1g} of the norm"
            )
            continue
        timings = [measure(heads, nodes) for nodes in SIZES]
        least = least_nodes(timings)
        for t in timings:
            figures = {"sdpa": t.sdpa, "flex": t.flex, "padded": t.padded, "first": t.first}
            context.measured |= {f"attention_{t.nodes}_{k}_s": v for k, v in figures.items()}
        chosen = "SDPA" if least is None else f"flex_attention from {least:,} nodes on"
        parts.append(f"{chosen} ({_save(heads, least)}); {describe(timings)}; {error:.1g} apart")
    return "; ".join(parts)


def _heads(policy: Policy) -> list[Heads]:
    """Find what the model's attention layers compute."""
    tree = build_tree([[0, 1]])
    layout = _Kernel(tree, policy.device, policy.conv_width)
    with torch.no_grad():
        tokens, depths = (x.to(policy.device) for x in (tree.tokens, tree.depths))
        tree_forward(policy.decoder, tokens, depths, layout)
    return list(layout.heads)


def pages(nodes: int) -> tuple[TokenTree, int]:
    """Make a tree of so many nodes, or a few more: groups that read a page each.

    Returns:
        The tree, and the number of its rows.
    """
    random = np.random.default_rng(0)
    shared, rows = random.integers(1000, size=SHARED).tolist(), []
    for _ in range(-(-(nodes - SHARED) // (PAGE + GROUP_SIZE * TOKENS))):
        page = random.integers(1000, size=PAGE).tolist()
        for _ in range(GROUP_SIZE):
            rows.append(shared + page + random.integers(1000, size=TOKENS).tolist())
    return build_tree(rows), len(rows)


def difference(heads: Heads, tree: TokenTree) -> float:
    """Compute both kernels, with gradients on CUDA; return the largest difference.

    Returns:
        In proportion to the norm, of the values or of a gradient.
    """
    gradients = heads.device.type == "cuda"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without", UserWarning)
        results = [_attend(heads, tree, flex=f, gradients=gradients)() for f in (False, True)]
    differences = [
        float((one - other).double().norm() / one.double().norm())
        for one, other in zip(*results, strict=True)
    ]
    return float(np.max(differences))  # NaN if one is


def measure(heads: Heads, nodes: int) -> Timing:
    """Time both kernels and the yardstick."""
    (tree, rows), device = pages(nodes), str(heads.device)
    flex = _attend(heads, tree, flex=True)
    synchronize(device)
    started = time.perf_counter()
    flex()
    synchronize(device)
    first = time.perf_counter() - started
    work = _attend(heads, tree, flex=False), flex, _padded(heads)
    sdpa_s, flex_s, padded_s = (seconds_per_call(run, device) for run in work)
    return Timing(nodes, sdpa_s, flex_s, padded_s * rows / PADDED_ROWS, first)


def _attend(
    heads: Heads, tree: TokenTree, *, flex: bool, gradients: bool = True
) -> Callable[[], list[Tensor]]:
    """Return a function that computes a layer's attention: its values, and its gradients."""
    layer, layout = nn.Identity(), _Kernel(tree, heads.device, flex=flex)
    query, key, value = inputs = _random(heads, 1, len(tree), gradients)

    def run() -> list[Tensor]:
        output, _ = tree_attention(layer, query, key, value, None, seq_idx=layout)
        return [output, *(torch.autograd.grad(output.sum(), inputs) if gradients else ())]

    return run


def _padded(heads: Heads) -> Callable[[], object]:
    query, key, value = inputs = _random(heads, PADDED_ROWS, SHARED + PAGE + TOKENS, True)

    def run() -> object:
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return torch.autograd.grad(output.sum(), inputs)

    return run


def _random(heads: Heads, rows: int, length: int, gradients: bool) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    sizes = (heads.heads, heads.width), (heads.kv_heads, heads.width)
    return [
        torch.randn(rows, count, length, width, generator=random)
        .to(heads.device, heads.dtype)
        .requires_grad_(gradients)
        for count, width in (*sizes, (heads.kv_heads, heads.value_width))
    ]


def least_nodes(timings: Sequence[Timing]) -> int | None:
    """Return the size from which on flex_attention is faster, None if it is not."""
    least = None
    for timing in reversed(timings):
        if timing.flex >= timing.sdpa:
            break
        least = timing.nodes
    return least


def describe(timings: Sequence[Timing]) -> str:
    """Say what was measured."""
    figures = [
        f"{t.nodes:,} nodes {t.sdpa * 1e3:.3g}, {t.flex * 1e3:.3g} and {t.padded * 1e3:.3g} ms"
        for t in timings
    ]
    compiled = sum(t.first for t in timings)
    return (
        f"SDPA, flex_attention and padded rows take in a layer with {', '.join(figures)}; first "
        f"calls {compiled:.0f} s"
    )


def _save(heads: Heads, least: int | None) -> str:
    """Save the choice of a GPU; say where it is, or why not."""
    if heads.device.type != "cuda":
        return ""
    try:
        save_choice(heads, least)
    except OSError as error:
        return f"not saved: {one_line_reason(error)}"
    return f"saved in {choices_file()}"
