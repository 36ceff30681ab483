"""Where metrics go: a JSONL file always, TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path
from typing import Any


class MetricsLog:
    """Writes each step's metrics to `metrics.jsonl` and to TensorBoard events.

    Attributes:
        path: the JSONL file; a line a step: `{"step": 3, "time": ..., "reward": ...}`.
    """

    def __init__(self, folder: str | Path, *, keep_before_step: int = 0) -> None:
        """Open the log.

        Args:
            folder: the run's folder.
            keep_before_step: lines of earlier steps that are kept (a resumed run's); later
                ones belong to a future that did not happen.
        """
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if line["step"] < keep_before_step]
        # Whole or not at all: a death here must not cost the metrics of the steps before.
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.replace(self.path)
        self._tensorboard: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn(
                "no TensorBoard events: install the extra 'tensorboard' for them", stacklevel=2
            )
        else:
            self._tensorboard = SummaryWriter(
                str(self.path.parent / "tensorboard"), purge_step=keep_before_step
            )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        if self._tensorboard is not None:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The steps of a `metrics.jsonl`; none if there is no file. A torn last line is left out."""
    if not Path(path).is_file():
        return []
    steps = []
    for line in Path(path).read_text().splitlines():
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return steps
