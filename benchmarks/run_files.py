"""The files of two runs, compared: equal runs differ in times, ids and options alone."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpo.files import EARLIER
from grpo.reporting.loggers import read_metrics
from grpo.training.checkpoint import MANIFEST, STATE_FILE

VARYING = ("time", "seconds/", "env/episodes_executed", "env/steps_", "env/replay_")
"""Prefixes of the metrics that differ between equal runs: times, and what depends on them, such as
which episode was first to act, or on whether episodes are shared."""

SAMPLED = ("entropy", "sampling/", "logprob")
"""Prefixes of the numbers that are read off the generator's log-probabilities, in metrics and in
recorded episodes. Their last digits depend on which requests it computed together, and so on
times."""

APART = (
    *("run.json", "config.yaml", "README.md", "curves.png", "points-0.json", "points-1.json"),
    *("index.html", "data.js", "state.js"),
)
"""Files that hold times or ids between other things: it counts that they are there."""

OTHERS = (EARLIER, "tensorboard")
"""Folders whose files the kills themselves are the reason of."""


def metrics(path: Path) -> list[dict[str, float]]:
    """Read a `metrics.jsonl` or `imitation.jsonl` without what varies."""
    lines = read_metrics(path)
    return [{k: v for k, v in line.items() if not k.startswith(VARYING)} for line in lines]


def differences(
    one: Path, other: Path, but: Collection[str] = (), rounding: float = 1e-6
) -> list[str]:
    """Name the files that are in one of two folders alone, or not equal.

    Args:
        one: the first folder.
        other: the second one.
        but: names to leave out.
        rounding: by how many nats log-probabilities of the generator may differ.
    """
    left, right = _names(one) - set(but), _names(other) - set(but)
    different = [
        name
        for name in sorted(left & right)
        if not _equal(_content(one / name), _content(other / name), rounding)
    ]
    missing, more = sorted(left - right), sorted(right - left)
    return [*different, *(f"{n} missing" for n in missing), *(f"{n} left over" for n in more)]


def _names(folder: Path) -> set[str]:
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    return {str(name) for name in names if not set(OTHERS) & set(name.parts)}


def _content(path: Path) -> Any:
    """Return what two files of equal runs have in common."""
    if path.is_dir() or path.name in APART:
        return path.is_dir()
    if path.name in ("metrics.jsonl", "imitation.jsonl"):
        return metrics(path)
    if path.name == STATE_FILE:
        return _without(_plain(torch.load(path, weights_only=True)), "seconds")
    if path.name == MANIFEST:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["sha256"].pop(STATE_FILE)
        return _without(manifest, "run", "config")
    if path.name == "summary.json":
        return _without(json.loads(path.read_text(encoding="utf-8")), "run", "seconds", "command")
    if path.name == "episode.json":
        return json.loads(path.read_text(encoding="utf-8"))
    return path.read_bytes()


def _equal(one: Any, other: Any, rounding: float, name: str = "") -> bool:
    """Compare contents; numbers of what was sampled may differ by rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _equal(one[key], other[key], rounding, key) for key in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _equal(*pair, rounding) for pair in zip(one, other, strict=True)
        )
    if name.startswith(SAMPLED):
        return math.isclose(one, other, rel_tol=0, abs_tol=rounding)
    return bool(one == other)


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _plain(value: Any) -> Any:
    """Replace tensors by their bytes, which two NaNs have in common."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
