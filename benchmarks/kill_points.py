"""A training run that kills itself at a point that it is told: one attempt of `benchmarks.kills`.

Points are what a kill could fall between: operations on files, calls of the environment, updates,
syncs. They are counted within the phase of the run that they belong to, so that a run passes the
same points each time. The library knows nothing of them: this file wraps its functions.

The model is the one of `tests/support/models.py`, read from a folder; the environment has one page.
"""

from __future__ import annotations

import builtins
import inspect
import io
import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch

import grpo
import grpo.reporting.report as reporting
import grpo.reporting.watch as watching
import grpo.run
from envs.base import Observation, StepResult, Task
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.files import replacing
from grpo.reporting.loggers import MetricsLog
from grpo.training import saver
from grpo.training.trainer import Trainer
from grpo.training.updater import Updater
from grpo.training.warm_start import WarmStart
from tests.support.models import TASK

OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Point(NamedTuple):
    """A point of a run.

    Attributes:
        kind: part of the run, e.g. "save".
        place: which one, e.g. "step 2".
        number: of the point in that place, from 1.
        what: what comes after it: an operation and the name of its file, or a call.
        cut: bytes of that write, or of the next longer one, after which the kill comes; 0 for a
            kill before it.
    """

    kind: str
    place: str
    number: int
    what: str = ""
    cut: int = 0


class Watch:
    """Counts the points that this process passes, and kills it at one of them.

    Attributes:
        passed: the points so far.
    """

    def __init__(self, folder: Path, target: Point | None) -> None:
        """Begin to count.

        Args:
            folder: of the run and of its uploads; operations on other files do not count.
            target: where to kill the process; None for nowhere.
        """
        self.folder, self.target = str(folder.resolve()), target
        self.passed: list[Point] = []
        self._counts = Counter[tuple[str, str]]()
        self._phase = ContextVar("phase", default=("start", ""))

    def reach(self, what: str, size: int = 0) -> None:
        """Pass the next point of the present phase; before a write, `size` is that of the file."""
        phase = self._phase.get()
        self._counts[phase] += 1
        point = Point(*phase, self._counts[phase], what)
        if self.target is not None and self.target[:3] == point[:3]:
            if not self.target.cut:
                os.kill(os.getpid(), signal.SIGKILL)
            # The kernel ends a process that makes a file larger; Python ignores its signal.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + self.target.cut,) * 2)
        self.passed.append(point)

    @contextmanager
    def phase(self, kind: str, place: str) -> Iterator[None]:
        """Count the block's points as those of a place."""
        token = self._phase.set((kind, place))
        try:
            yield
        finally:
            self._phase.reset(token)

    def covers(self, path: Any) -> bool:
        """Tell whether a file's operations count. TensorBoard's happen in a thread of its own."""
        if not isinstance(path, str | os.PathLike):
            return False
        name = os.path.abspath(os.fspath(path))
        return name.startswith(self.folder) and "tensorboard" not in name

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Pass a point before an operation on files, as Python tells of it."""
        if event == "open":
            counts = arguments[2] & WRITING and self.covers(arguments[0])
        elif event in OPERATIONS:  # rmtree names what it removes relative to a descriptor
            descriptor = event in ("os.remove", "os.rmdir") and arguments[1] != -1
            counts = descriptor or self.covers(arguments[0])
        else:
            return
        if counts:
            self.reach(f"{event} {Path(str(arguments[0])).name}")


class OnePage(ScriptedEnv):
    """An environment whose every task is the one page that the model has words for."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        """Start an episode."""
        self._watch.reach("reset")
        return await super().reset(TASK, screenshot=screenshot)

    async def step(self, text: str) -> StepResult:
        """Click a word."""
        self._watch.reach("step")
        return await super().step(text)


class LocalHub:
    """Stands in for the hub's client: a repository is a folder, and a commit replaces it."""

    folder: Path

    def whoami(self) -> dict[str, Any]:
        """Return the user that the token belongs to."""
        return {"name": "user"}

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> str:
        """Return the repository's address."""
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"local/{repo_id}"

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        """Replace the repository's files."""
        with replacing(self.folder / repo_id) as unfinished:
            for operation in operations:
                path, content = unfinished / operation.path_in_repo, operation.path_or_fileobj
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    content if isinstance(content, bytes) else Path(content).read_bytes()
                )


def install(watch: Watch) -> None:
    """Make this process pass the points of a watch. Not to be undone."""
    Call = Callable[..., Any]

    def phases(owner: Any, name: str, phase: Callable[..., tuple[str, str]]) -> None:
        function: Call = getattr(owner, name)

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            with watch.phase(*phase(*args, **options)):
                return function(*args, **options)

        @wraps(function)
        async def call_async(*args: Any, **options: Any) -> Any:
            with watch.phase(*phase(*args, **options)):
                return await function(*args, **options)

        is_async = inspect.iscoroutinefunction(function)
        setattr(owner, name, call_async if is_async else call)

    def update(self: Updater, batch: Any, gap: Any = None, step: int = 0) -> Any:
        watch.reach("update")
        result = original_update(self, batch, gap, step)
        watch.reach("after an update")
        return result

    def fsync(descriptor: int) -> None:
        if watch.covers(path := os.readlink(f"/proc/self/fd/{descriptor}")):
            watch.reach(f"os.fsync {Path(path).name}")
        original_fsync(descriptor)

    def open_file(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        opened = original_open(file, mode, *args, **options)
        if set(mode) & set("wax+") and watch.covers(file):
            watch.reach(f"write {Path(file).name}", os.fstat(opened.fileno()).st_size)
        return opened

    original_update, original_fsync, original_open = Updater.update, os.fsync, io.open
    Updater.update, os.fsync = update, fsync  # type: ignore[method-assign, assignment]
    io.open = builtins.open = open_file
    sys.addaudithook(watch.audit)
    phases(WarmStart, "run", lambda *_, **__: ("warm start", "episodes"))
    phases(Updater, "update", lambda self, batch, gap=None, step=0: (
        ("training", f"update {step}") if step else ("warm start", "updates")
    ))  # fmt: skip
    phases(Trainer, "collect", lambda self, step, *_: ("training", f"rollouts {step + 1}"))
    phases(MetricsLog, "log", lambda self, step, _: ("training", f"log {step}"))
    phases(MetricsLog, "completions", lambda self, step, *_: ("training", f"completions {step}"))
    phases(watching.Watch, "step", lambda self, step, *_: ("training", f"page {step.step}"))
    phases(saver, "save_checkpoint", lambda config, step, *_: ("save", f"step {step}"))
    phases(saver, "save_weights", lambda *_: ("results", "weights"))
    phases(reporting.Report, "evaluate", lambda self, agents: ("evaluation", ", ".join(agents)))
    phases(reporting.Report, "record_episodes", lambda *a: ("evaluation", f"pictures {a[-1]}"))
    phases(reporting.TrainingReport, "finish", lambda *_: ("results", "report"))
    phases(reporting, "push_to_hub", lambda *_: ("upload", "run"))


def play(config: Config, target: Point | None = None) -> None:
    """Run a configuration up to a point, or to its end; then write the points that it passed.

    Args:
        config: of the run. Its folder is `run/` in another one, which the upload goes to as well.
        target: the point; None for the end.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)  # what nothing draws from is in checkpoints all the same
    above = config.folder.parent
    watch = Watch(above, target)
    LocalHub.folder = above / "hub"
    huggingface_hub.HfApi = LocalHub  # type: ignore[assignment, misc]
    install(watch)
    grpo.train(config, lambda: OnePage(watch))
    passed = [list(point) for point in watch.passed]
    points = above / f"points-{os.environ.get('RANK', 0)}.json"
    points.write_text(json.dumps(passed), encoding="utf-8")


def main() -> None:
    """Play one rank of a run: `CONFIG RANK POINT`, the first and the last as JSON."""
    config, rank, point = Config(**json.loads(sys.argv[1])), sys.argv[2], json.loads(sys.argv[3])
    play(config, Point(*point) if point and os.environ["RANK"] == rank else None)


if __name__ == "__main__":
    main()
