"""Dashboards: the curves of a run in TensorBoard or Weights & Biases."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from grpo.errors import ConfigError
from grpo.files import write_text
from grpo.reporting.completions import CompletionRow, as_markdown
from grpo.reporting.progress import CURVES
from grpo.safe_output import printable

if TYPE_CHECKING:
    from grpo.config import Config


class Dashboard(Protocol):
    """Shows metrics and completions. Once it has started, its failures are warnings."""

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Show the metrics of a step."""

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        """Show some completions of a step."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Events in the run's folder."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Show the metrics of a step."""
        # TensorBoard sorts its groups by name, upper case first: the three curves open the page.
        first = {name for name, _ in CURVES}
        with warning_of("TensorBoard"):
            for name, value in metrics.items():
                self._writer.add_scalar(f"Overview/{name}" if name in first else name, value, step)
            self._writer.flush()

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        """Show some completions of a step."""
        with warning_of("TensorBoard"):
            self._writer.add_text("completions", as_markdown(rows), step)
            self._writer.flush()

    def close(self) -> None:
        """Write what is not written yet."""
        with warning_of("TensorBoard"):
            self._writer.close()


def open_tensorboard(folder: Path, purge_step: int, part: str = "") -> TensorBoard | None:
    """Write events into the run's folder; warn and return None without TensorBoard.

    TensorBoard names a run by the folder of its events: the run's own name.

    Args:
        folder: the run's folder.
        purge_step: what an earlier program has written from this step on is not shown.
        part: of the run, whose steps are others; empty for the training.

    Raises:
        ConfigError: that folder cannot be made.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        text = "no TensorBoard events: install the extra 'tensorboard' for them"
        warnings.warn(text, stacklevel=3)
        return None
    events = folder / "tensorboard" / folder.resolve().name / part
    try:
        return TensorBoard(SummaryWriter(str(events), purge_step=purge_step))
    except OSError as error:
        reason = f"cannot write TensorBoard's events to {str(events)!r}: {error.strerror}"
        raise ConfigError(reason) from error


def check_dashboard(config: Config) -> None:
    """Check, before anything is loaded, that the dashboard's package is installed.

    Raises:
        ConfigError: it is W&B's, and is not.
    """
    if config.logger == "wandb":
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError("logger=wandb needs wandb: install the extra 'wandb'") from error


class WandB:
    """A run of Weights & Biases. Once it has started, its failures are warnings."""

    def __init__(self, folder: Path, config: Config, seen: int) -> None:
        """Start the run, or continue the one that the folder names.

        Args:
            folder: the run's folder; `wandb-id` in it names the W&B run.
            config: logged with the run.
            seen: steps that were logged before the run was resumed. A resumed run computes some
                of them again, with the same results, and W&B accepts each step once.
        """
        check_dashboard(config)
        import wandb

        path = folder / "wandb-id"
        resumed = bool(seen) and path.is_file()
        self._seen = seen if resumed else 0
        self._table = wandb.Table
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "grpo-browser",
                name=folder.resolve().name,
                dir=folder,
                id=(path.read_text(encoding="utf-8").strip() or None) if resumed else None,
                resume="allow" if resumed else None,
                config=config.model_dump(mode="json"),
                allow_val_change=True,
                settings=wandb.Settings(console="off"),  # it would break the progress bars
            )
        except (wandb.Error, ValueError) as error:  # ValueError: of its environment variables
            raise ConfigError(f"W&B does not start: {' '.join(str(error).split())}") from error
        write_text(path, self._run.id + "\n")

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Show the metrics of a step."""
        if step > self._seen:
            with warning_of("W&B"):
                self._run.log(metrics, step=step)

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        """Show some completions of a step."""
        if step > self._seen:
            table = self._table(
                columns=list(CompletionRow._fields), data=[list(row) for row in rows]
            )
            with warning_of("W&B"):
                self._run.log({"completions": table}, step=step)

    def close(self) -> None:
        """Write what is not written yet."""
        with warning_of("W&B"):
            self._run.finish()


@contextmanager
def warning_of(name: str) -> Iterator[None]:
    """Make any failure in the block a warning: no dashboard ends a training run."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{name} failed: {printable(error)}", stacklevel=4)
