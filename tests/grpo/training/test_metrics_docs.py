"""`docs/metrics.md` explains every metric, and no other."""

import re
from pathlib import Path

from grpo.training.metrics import IMITATION, METRICS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def test_every_metric_is_explained_once():
    rows = re.findall(r"^\| `([^`]+)` \|(.+)\|(.+)\|$", PAGE.read_text(), re.MULTILINE)
    names = [name for name, *_ in rows]
    assert sorted(names) == sorted(METRICS | IMITATION)
    assert all(formula.strip() and reading.strip() for _, formula, reading in rows)
