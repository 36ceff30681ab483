"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_S = 1.0
"""Signals this close are one: on Ctrl-C the terminal sends one to everybody, then torchrun does."""


class Stopped(Exception):
    """The program was told to end, and has closed what it held open."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.exit_code = 128 + number
        """What a shell expects of a program that a signal ended."""


class GracefulShutdown:
    """A block in which the signals that end a program are handled by the task that runs it.

    Attributes:
        ask: called at the first signal; True says that the work will end by itself, soon. If it
            will not, and at the second signal, the task is cancelled, once, and what it holds
            open is closed on its way out; the block ends with `Stopped`.
        received: the signals so far.
    """

    def __init__(self) -> None:
        self.ask: Callable[[], bool] = lambda: False
        self.received: list[signal.Signals] = []
        self._last = -SAME_S
        self._cancelled = False

    async def __aenter__(self) -> GracefulShutdown:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._handle, number)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number in SIGNALS:
            self._loop.remove_signal_handler(number)
        if self._cancelled and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise Stopped(self.received[0]) from None

    def _handle(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if now - self._last < SAME_S:
            return
        self._last = now
        self.received.append(number)
        waits = len(self.received) == 1 and self.ask()
        if not waits and not self._cancelled and self._task is not None:
            self._cancelled = True
            self._task.cancel()
