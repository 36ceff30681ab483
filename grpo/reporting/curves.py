"""The picture of a run: reward, completion length and entropy, with the evaluations around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.reporting.progress import CURVES, rate_text
from grpo.safe_output import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = "#2a6f97"
IMITATED = "#b8b8b8"
EVALUATIONS = {"untrained": "#8a8a8a", "warm_started": "#e09f3e", "trained": "#2b9348"}
"""Agents whose success is marked, and its colour; that of the last one after the last step."""

DOTTED = 50
"""Steps up to which each one has a dot."""

BESIDE = 0.02
"""Part of the steps by which the second evaluation before them stands beside the first."""

TITLE_LENGTH = 110


def plot_curves(
    steps: Sequence[dict[str, float]],
    path: Path,
    *,
    title: str,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Draw reward, completion length and entropy over the training steps as a PNG.

    Args:
        steps: as `read_metrics` returns them.
        path: of the picture.
        title: of the picture; a long one is cut.
        summary: holds the success rates by agent: the sampled ones of `EVALUATIONS` are marked
            beside the reward, before the first step and after the last.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(
        1, len(CURVES), figsize=(10, 3.7 if summary else 3.2), layout="constrained"
    )
    last = max((line["step"] for line in steps), default=0)
    for axis, (name, label) in zip(axes, CURVES, strict=True):
        points = [(s["step"], s[name]) for s in steps if name in s and isfinite(s[name])]
        x, y = zip(*points, strict=True) if points else ((), ())
        axis.plot(x, y, color=LINE, linewidth=1.5, marker="." if len(x) <= DOTTED else "")
        axis.set_title(label, fontsize=11)
        axis.set_xlabel("training step")
        axis.set_xlim(-0.04 * max(last, 1), 1.04 * max(last, 1))
        axis.set_ylim(0, 1.08 * max(y, default=0) or 1)  # from 0, so that a change has its size
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if name == "reward":
            axis.set_ylim(min(-0.04, *y, 0) * 1.04, max(1.04, *y, 0) * 1.04)
            _mark_success(axis, summary or {}, last)
    _save(figure, path, title)


def plot_imitation(steps: Sequence[dict[str, float]], path: Path, *, title: str) -> None:
    """Draw the losses of a warm start over its updates as a PNG.

    Args:
        steps: as `read_metrics` returns them.
        path: of the picture.
        title: of the picture; a long one is cut.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import MaxNLocator

    def points(name: str) -> tuple[list[float], list[float]]:
        found = [s for s in steps if isfinite(s.get(f"imitation/{name}", nan))]
        return [s["step"] for s in found], [s[f"imitation/{name}"] for s in found]

    x, held_out = points("held_out_loss")
    figure, axes = pyplot.subplots(
        1, 2 if x else 1, figsize=(8 if x else 4.6, 3.2), layout="constrained", squeeze=False
    )
    loss, *others = axes[0]
    loss.set_title("loss (nats per token)", fontsize=11)
    colour = IMITATED if x else LINE
    loss.plot(*points("loss"), color=colour, linewidth=1.2, label="imitated, before the update")
    if x:
        loss.plot(x, held_out, color=LINE, linewidth=1.5, marker=".", label="held out")
        loss.legend(fontsize=8, frameon=False)
    for axis in others:
        axis.set_title("held-out actions repeated greedily", fontsize=11)
        axis.plot(*points("held_out_greedy"), color=LINE, linewidth=1.5, marker=".")
        axis.set_ylim(-0.04, 1.04)
    loss.set_ylim(0, 1.08 * max([*points("loss")[1], *held_out], default=0) or 1)
    for axis in axes[0]:
        axis.set_xlabel("update")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path, title)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the picture of the curves needs matplotlib: install the extra 'tensorboard'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Figure, path: Path, title: str) -> None:
    """Write a figure below its title, and close it."""
    shown = one_line(title)
    shown = shown if len(shown) <= TITLE_LENGTH else f"{shown[:TITLE_LENGTH]}..."
    figure.suptitle(shown, fontsize=11, parse_math=False)
    figure.savefig(path, dpi=150)
    _pyplot().close(figure)


def _mark_success(axis: Axes, summary: Mapping[str, Any], last: float) -> None:
    """Mark the success rates with their intervals, and name them in a legend."""
    for name, colour in EVALUATIONS.items():
        rate = summary.get(name, {}).get("sampled")
        if rate is None:
            continue
        success, low, high = rate["success"], rate["low"], rate["high"]
        place = {"trained": last, "warm_started": BESIDE * max(last, 1)}.get(name, 0)
        axis.errorbar(
            place,
            success,
            yerr=[[success - low], [high - success]],
            fmt="D",
            markersize=5,
            capsize=3,
            color=colour,
            label=f"{name.replace('_', ' ')} {rate_text(rate)}",
            clip_on=False,
            zorder=3,
        )
    if axis.get_legend_handles_labels()[0]:
        axis.figure.legend(  # below, where it covers no curve
            title="success on held-out seeds",
            fontsize=8,
            title_fontsize=8,
            loc="outside lower center",
            ncols=len(EVALUATIONS),
        )
