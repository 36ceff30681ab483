"""Loggers: metrics go to a JSONL file, and to TensorBoard or Weights & Biases."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from grpo.errors import ConfigError
from grpo.reporting.completions import CompletionRow, as_markdown, as_table, completion_rows
from grpo.reporting.progress import CURVES, SafeConsole
from grpo.safe_output import printable
from grpo.types import Group

if TYPE_CHECKING:
    from grpo.config import Config


class MetricsLog:
    """Writes metrics to `metrics.jsonl` and a dashboard, and some completions now and then.

    Attributes:
        path: the JSONL file; one line per step: `{"step": 3, "time": ..., "reward": ...}`.
    """

    def __init__(
        self, folder: str | Path, *, keep_before_step: int = 0, config: Config | None = None
    ) -> None:
        """Open the log.

        Args:
            folder: the run's folder.
            keep_before_step: lines of earlier steps are kept (of a resumed run); later ones are
                computed again.
            config: says which dashboard, and how often completions are shown; None for the
                defaults.

        Raises:
            ConfigError: W&B is not installed or does not start.
        """
        if config is None:
            from grpo.config import Config

            config = Config()
        self._config = config
        self.path = Path(folder) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = read_metrics(self.path)
        kept = [line for line in before if line["step"] < keep_before_step]
        _rewrite(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._completions = self.path.with_name("completions.txt")
        if self._completions.is_file():
            _rewrite(
                self._completions, _before_step(keep_before_step, self._completions.read_text())
            )
        self._dashboard: _Dashboard | None
        if self._config.logger == "wandb":
            seen = int(before[-1]["step"]) if kept else 0
            self._dashboard = _WandB(self.path.parent, self._config, seen)
        else:
            self._dashboard = _tensorboard(self.path.parent, keep_before_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one step."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
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
        with self._completions.open("a", encoding="utf-8") as file:
            # A file, whatever the environment says of colours.
            console = SafeConsole(file=file, width=120, force_terminal=False, color_system=None)
            console.print(f"step {step}", as_table(rows), "", sep="\n")
        if self._dashboard is not None:
            self._dashboard.completions(step, rows)

    def close(self) -> None:
        """Close the dashboard's files and connections."""
        if self._dashboard is not None:
            self._dashboard.close()


class _Dashboard(Protocol):
    def metrics(self, step: int, metrics: dict[str, float]) -> None: ...

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        # TensorBoard sorts its groups by name, upper case first: the three curves open the page.
        first = {name for name, _ in CURVES}
        for name, value in metrics.items():
            self._writer.add_scalar(f"Overview/{name}" if name in first else name, value, step)
        self._writer.flush()

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        self._writer.add_text("completions", as_markdown(rows), step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _tensorboard(folder: Path, purge_step: int) -> _TensorBoard | None:
    """Write events into the run's folder; warn and return None without TensorBoard.

    TensorBoard names a run by the folder of its events: the run's own name.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        text = "no TensorBoard events: install the extra 'tensorboard' for them"
        warnings.warn(text, stacklevel=3)
        return None
    events = folder / "tensorboard" / folder.resolve().name
    return _TensorBoard(SummaryWriter(str(events), purge_step=purge_step))


class _WandB:
    """A run of Weights & Biases. Once it has started, its failures are warnings."""

    def __init__(self, folder: Path, config: Config, seen: int) -> None:
        """Start the run, or continue the one that the folder names.

        Args:
            folder: the run's folder; `wandb-id` in it names the W&B run.
            config: logged with the run.
            seen: steps that were logged before the run was resumed. A resumed run computes some
                of them again, with the same results, and W&B accepts each step once.
        """
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ConfigError("logger=wandb needs wandb: install the extra 'wandb'") from error
        path = folder / "wandb-id"
        resumed = bool(seen) and path.is_file()
        self._seen = seen if resumed else 0
        self._table = wandb.Table
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "grpo-browser",
                name=folder.resolve().name,
                dir=folder,
                id=path.read_text().strip() if resumed else None,
                resume="allow" if resumed else None,
                config=config.model_dump(mode="json"),
                allow_val_change=True,
                settings=wandb.Settings(console="off"),  # it would break the progress bars
            )
        except (wandb.Error, ValueError) as error:  # ValueError: of its environment variables
            raise ConfigError(f"W&B does not start: {' '.join(str(error).split())}") from error
        path.write_text(self._run.id + "\n")

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        if step > self._seen:
            self._try(lambda: self._run.log(metrics, step=step))

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        if step > self._seen:
            table = self._table(
                columns=list(CompletionRow._fields), data=[list(row) for row in rows]
            )
            self._try(lambda: self._run.log({"completions": table}, step=step))

    def close(self) -> None:
        self._try(self._run.finish)

    def _try(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # no failure of a dashboard ends a training run
            warnings.warn(f"W&B failed: {printable(error)}", stacklevel=3)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read a `metrics.jsonl`; [] if there is no file. An incomplete last line is left out."""
    if not Path(path).is_file():
        return []
    steps = []
    for line in Path(path).read_text().splitlines():
        try:
            steps.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return steps


def _rewrite(path: Path, text: str) -> None:
    """Replace a file atomically, so that a crash cannot lose the steps before."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def _before_step(step: int, text: str) -> str:
    """Return the parts of `completions.txt` that belong to earlier steps."""
    parts = re.split(r"^(?=step \d+$)", text, flags=re.MULTILINE)
    return "".join(part for part in parts if part and int(part.split()[1]) < step)
