"""The server's side of its workers: calls with a deadline, and a new process for a dead one."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import shutil
import tempfile
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from envs.server.processes import kill_marked
from envs.server.session import SessionError

START_DEADLINE_S = 60.0

_MARK = "GRPO_BROWSER_WORKER"


class Worker:
    """A worker process behind one thread, which makes its calls one after another.

    Args:
        deadline_s: seconds one call may take; a worker that takes longer is killed.
    """

    def __init__(self, deadline_s: float):
        self.deadline_s = deadline_s
        self.generation = 0
        self.sessions: set[int] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._mark = uuid.uuid4().hex
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> Future[None]:
        """Start the process and its Chromium."""
        return self._thread.submit(self._start)

    def call(
        self, method: str, session_id: int, generation: int | None, **arguments: Any
    ) -> Future[tuple[int, dict[str, Any]]]:
        """Ask the process for something.

        Args:
            method: `reset`, `step` or `close`.
            session_id: which session.
            generation: the process the session was born in, None for a new session.
            arguments: the method's own.

        Returns:
            A future of (generation, answer); it raises what the worker answered, or
            SessionError if the process died, took too long, or is no longer the session's.
        """
        return self._thread.submit(self._call, method, session_id, generation, arguments)

    def stop(self) -> None:
        """End the process and everything it started."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._kill()

    # What follows runs in the worker's thread only. (The death signal of a child is tied
    # to the thread that started it, too.)

    def _start(self) -> None:
        self.generation += 1
        self._folder = tempfile.mkdtemp(prefix="grpo-browser-")
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(
            target=_run,
            args=(theirs, {_MARK: self._mark, "TMPDIR": self._folder}),
            daemon=True,
            name="browser-worker",
        )
        self._process.start()
        theirs.close()
        self._receive(START_DEADLINE_S)

    def _call(
        self, method: str, session_id: int, generation: int | None, arguments: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if self._process is not None and not self._process.is_alive():
            self._kill()
        if generation is not None and (self._process is None or generation != self.generation):
            raise SessionError("the session is lost: its browser worker died")
        if self._process is None:
            self._start()
        try:
            self._pipe.send((method, session_id, arguments))
        except OSError:
            self._kill()
            raise SessionError("the session is lost: its browser worker died") from None
        answer = self._receive(self.deadline_s)
        if isinstance(answer, Exception):
            raise answer
        return self.generation, answer

    def _receive(self, deadline_s: float) -> Any:
        try:
            if self._pipe.poll(deadline_s):
                return self._pipe.recv()
            reason = f"gave no answer within {deadline_s:g} s"
        except (EOFError, OSError):
            reason = "died"
        self._kill()
        raise SessionError(f"the session is lost: its browser worker {reason}")

    def _kill(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._pipe.close()
        # Chromium has a process group of its own, and a frozen one outlives its worker.
        kill_marked(f"{_MARK}={self._mark}")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._process = None


class WorkerPool:
    """A fixed number of workers; a session belongs to one of them for life.

    Args:
        workers: number of worker processes.
        deadline_s: seconds one call may take.
    """

    def __init__(self, workers: int, deadline_s: float):
        self.workers = [Worker(deadline_s) for _ in range(workers)]
        self._ids = itertools.count()

    def start(self) -> list[Future[None]]:
        """Start every worker; each is ready when its future is done."""
        return [worker.start() for worker in self.workers]

    def open(self) -> WorkerSession:
        """Open a session on the worker with the fewest."""
        worker = min(self.workers, key=lambda one: len(one.sessions))
        return WorkerSession(worker, next(self._ids))

    def stop(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.stop()


class WorkerSession:
    """One session's road to its worker."""

    def __init__(self, worker: Worker, session_id: int):
        self.worker = worker
        self.id = session_id
        self._generation: int | None = None
        worker.sessions.add(session_id)

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Await the worker's answer; see `Worker.call`."""
        future = self.worker.call(method, self.id, self._generation, **arguments)
        generation, answer = await asyncio.wrap_future(future)
        self._generation = generation
        return answer

    def close(self) -> None:
        """Give up the session; the worker closes its page when it comes to it."""
        self.worker.sessions.discard(self.id)
        if self._generation is not None:
            self.worker.call("close", self.id, self._generation)


def _run(connection: Any, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from envs.server.worker import main

    main(connection)
