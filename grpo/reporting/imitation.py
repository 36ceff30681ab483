"""The log of a warm start: `imitation.jsonl`, TensorBoard, and a picture of its losses."""

from __future__ import annotations

import json
import time
from pathlib import Path

from grpo.files import replacing, write_text
from grpo.reporting.curves import plot_imitation
from grpo.reporting.dashboards import open_tensorboard
from grpo.reporting.loggers import append_text, read_metrics


class ImitationLog:
    """Writes the metrics of each update of a warm start, which are numbered from 1.

    Args:
        folder: the run's folder.
        run: id of the run, which its lines name.
        done: updates of a warm start that is resumed; what follows them is computed again.
        tensorboard: True to write TensorBoard's events as well.
    """

    def __init__(self, folder: Path, run: str, done: int, *, tensorboard: bool) -> None:
        self._folder, self._path, self._run = folder, folder / "imitation.jsonl", run
        kept = [line for line in read_metrics(self._path, run) if line["step"] <= done]
        kept = kept if done else []
        lines = (json.dumps(line | {"run": run}) + "\n" for line in kept)
        write_text(self._path, "".join(lines))
        self._events = open_tensorboard(folder, done + 1, "imitation") if tensorboard else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append an update; 0 is before the first one."""
        line = {"step": step, "time": time.time(), "run": self._run, **metrics}
        append_text(self._path, json.dumps(line) + "\n")
        if self._events is not None:
            self._events.metrics(step, metrics)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._events is not None:
            self._events.close()

    def draw(self, title: str) -> None:
        """Draw `imitation.png`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        with replacing(self._folder / "imitation.png") as unfinished:
            plot_imitation(read_metrics(self._path), unfinished, title=title)
