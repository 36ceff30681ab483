"""A coroutine as a function that blocks: in a program, and in a notebook cell."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from grpo.distributed import World
from grpo.shutdown import Shutdown

Result = TypeVar("Result")


def wait_for(program: Coroutine[Any, Any, Result], world: World, shutdown: Shutdown) -> Result:
    """Run a program to its end: in an event loop here, or beside the one that runs already.

    Args:
        program: the coroutine.
        world: told of an error, and left at the end.
        shutdown: that of the program; told of interrupts where its thread receives none.
    """
    try:
        result = _run(program, shutdown)
    except Exception as error:
        world.tell(error)
        raise
    world.close()
    return result


def _run(program: Coroutine[Any, Any, Result], shutdown: Shutdown) -> Result:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(program)
    # A notebook cell: the program gets a thread, and interrupts arrive in this one.
    with _interrupts(shutdown), ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, program).result()


@contextmanager
def _interrupts(shutdown: Shutdown) -> Iterator[None]:
    """Within this context an interrupt is a request to stop: it raises nothing, at no moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: shutdown.request_from_thread())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
