"""Loggers: metrics go to a JSONL file, and to TensorBoard or Weights & Biases."""

from __future__ import annotations

import io
import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from grpo.files import write_text
from grpo.reporting.completions import as_table, completion_rows
from grpo.reporting.dashboards import Dashboard, WandB, open_tensorboard
from grpo.reporting.progress import SafeConsole
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.config import Config


class MetricsLog:
    """Writes metrics to `metrics.jsonl` and a dashboard, and some completions now and then.

    Attributes:
        path: the JSONL file; one line per step: `{"step": 3, "time": ..., "reward": ...}`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep_before_step: int = 0,
        config: Config | None = None,
        run: str = "",
    ) -> None:
        """Open the log.

        Args:
            folder: the run's folder.
            keep_before_step: lines of earlier steps are kept (of a resumed run); later ones are
                computed again.
            config: says which dashboard, and how often completions are shown; None for the
                defaults.
            run: id of the run, which its lines name; lines of another one are not kept.

        Raises:
            ConfigError: W&B is not installed or does not start.
        """
        if config is None:
            from grpo.config import Config

            config = Config()
        self._config = config
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._run, self._pending = {"run": run} if run else {}, ""
        before = read_metrics(self.path, run)
        kept = [line for line in before if line["step"] < keep_before_step]
        write_text(self.path, "".join(json.dumps(line | self._run) + "\n" for line in kept))
        self._completions = self.path.with_name("completions.txt")
        if self._completions.is_file():
            text = self._completions.read_text(encoding="utf-8", errors="replace")
            write_text(self._completions, _before_step(keep_before_step, text))
        self._dashboard: Dashboard | None
        if self._config.logger == "wandb":
            seen = int(before[-1]["step"]) if kept else 0
            self._dashboard = WandB(self.path.parent, self._config, seen)
        else:
            self._dashboard = open_tensorboard(self.path.parent, keep_before_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step. On a full disk it is written with a later one."""
        line = {"step": step, "time": time.time(), **self._run, **metrics}
        self._pending += json.dumps(line) + "\n"
        if append_text(self.path, self._pending):
            self._pending = ""
        if self._dashboard is not None:
            self._dashboard.metrics(step, metrics)

    def completions(self, step: int, groups: Sequence[Group], advantages: Tensor) -> None:
        """Append a few completions of a step to `completions.txt`, every `log_completions` steps.

        Args:
            step: its number, from 1; the first is always shown.
            groups: the step's groups.
            advantages: [E, K] of their E episodes' turns, as the update used them.
        """
        every = self._config.log_completions
        if not every or (step - 1) % every or not groups:
            return
        rows = completion_rows(groups, advantages)
        text = io.StringIO()  # a file, whatever the environment says of colours
        console = SafeConsole(file=text, width=120, force_terminal=False, color_system=None)
        console.print(f"step {step}", as_table(rows), "", sep="\n")
        append_text(self._completions, text.getvalue())
        if self._dashboard is not None:
            self._dashboard.completions(step, rows)

    def close(self) -> None:
        """Close the dashboard's files and connections."""
        if self._dashboard is not None:
            self._dashboard.close()


def read_metrics(path: str | Path, run: str = "") -> list[dict[str, float]]:
    """Read a `metrics.jsonl`; [] if there is no file.

    What follows a line that is cut off or is none is left out, and lines of other runs than `run`.
    """
    if not Path(path).is_file():
        return []
    steps = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        if line.pop("run", run) == run or not run:
            steps.append(line)
    return steps


def append_text(path: Path, text: str) -> bool:
    """Append to a text file all or nothing; warn and return False where it cannot be written."""
    try:
        with path.open("ab", buffering=0) as file:  # a buffer would write the rest as it closes
            size, data = file.tell(), text.encode(errors="backslashreplace")
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                os.truncate(path, size)
                raise
    except OSError as error:
        warnings.warn(f"cannot write {path}: {error}", stacklevel=3)
        return False
    return True


def _before_step(step: int, text: str) -> str:
    """Return the parts of `completions.txt` that belong to earlier steps."""
    parts = re.split(r"^(?=step \d+$)", text, flags=re.MULTILINE)
    numbered = ((re.match(r"step (\d+)\n", part), part) for part in parts)
    return "".join(part for match, part in numbered if match and int(match[1]) < step)
