"""Ctrl-C, SIGTERM and SIGHUP: the first finishes the step, the second ends the program at once."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal was closed
SAME_S = 1.0
"""Signals this close count as one: on Ctrl-C the terminal signals every process, then torchrun."""


class Stopped(Exception):
    """A signal ended the program, which has closed everything it held."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}")
        self.exit_code = 128 + number
        """The exit code that a shell expects of a program that a signal ended."""


class Shutdown:
    """A block in which the signals that end a program are handled by the task that runs it.

    A signal cancels the task, which closes on its way out what it holds, and the block raises
    `Stopped`. Inside `deferred()` the first signal only sets `requested`: the work there ends by
    itself. In a thread other than the main one no signal arrives: call `request_from_thread`.

    Attributes:
        received: the signals so far.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last = -SAME_S
        self._handled: list[signal.Signals] = []
        self._deferred = self._cancelled = False

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return bool(self.received)

    def adopt(self, ranks: Iterable[Sequence[signal.Signals]]) -> bool:
        """Take over a signal that another rank has received.

        Args:
            ranks: the signals of every rank.

        Returns:
            True if any of them has received one.
        """
        received = [signals[0] for signals in ranks if signals]
        if received and not self.received:
            self.received.append(received[0])
        return bool(received)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the first signal set `requested` instead of cancelling the task."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def raise_if_requested(self) -> None:
        """Raise `Stopped` if a signal has arrived."""
        if self.received:
            raise Stopped(self.received[0])

    async def __aenter__(self) -> Shutdown:
        self.raise_if_requested()  # in a thread, before the block
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if threading.current_thread() is threading.main_thread():
            # A signal that nohup, or a shell, has the program ignore stays ignored.
            self._handled = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
            for number in self._handled:
                self._loop.add_signal_handler(number, self.request, number)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number in self._handled:
            asyncio.get_running_loop().remove_signal_handler(number)
        if self._cancelled and self._task is not None and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise Stopped(self.received[0]) from None

    def request_from_thread(self) -> None:
        """Act as on Ctrl-C; called in another thread than the block's.

        A request before the block ends it as it begins; one after its loop has ended is ignored.
        """
        if self._loop is None:
            self.received.append(signal.SIGINT)
            return
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.request, signal.SIGINT)

    def request(self, number: int) -> None:
        """Act on a signal; called in the block's event loop."""
        now = time.monotonic()
        if now - self._last < SAME_S:
            return
        self._last = now
        self.received.append(signal.Signals(number))
        waits = len(self.received) == 1 and self._deferred
        if not waits and not self._cancelled and self._task is not None:
            self._cancelled = True
            self._task.cancel()
