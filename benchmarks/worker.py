"""A part of a benchmark in a process of its own, which responds to requests in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class WorkerEnded(Exception):
    """The worker's process ended, as it does when memory runs out."""


class Worker:
    """A process that writes a line of JSON when it is ready, and one for each line it reads.

    Args:
        name: what errors call it.
        command: starts it, in the checkout.
        log: file for what it writes to standard error.
        environment: environment variables besides this process's own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.log = name, log
        # Bound OpenMP threads restrict this process to one core, which its children would inherit.
        if sys.platform == "linux":
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        self.read()

    def read(self) -> dict[str, Any]:
        """Read one response.

        Raises:
            WorkerEnded: the process ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text(errors="replace")[-1000:]
            raise WorkerEnded(
                f"{self.name} ended with {self.process.wait()}; its last output:\n{tail}"
            )
        response: dict[str, Any] = json.loads(line)
        return response

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the response."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process: it ends by itself where its standard input does."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
