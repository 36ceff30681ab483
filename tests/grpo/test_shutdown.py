"""Signals: the first one finishes what is deferred, the second one ends the program."""

import asyncio
import os
import signal
import threading

import pytest

from grpo.shutdown import SAME_S, Shutdown, Stopped

DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


def send(number, times=1):
    """Send a signal to this process, and again after as long as two of them count as one."""

    async def later():
        for _ in range(times):
            os.kill(os.getpid(), number)
            await asyncio.sleep(SAME_S * 1.1)

    return asyncio.create_task(later())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_is_a_request_while_work_is_deferred(number):
    async def work():
        async with Shutdown() as shutdown:
            assert not shutdown.requested
            shutdown.raise_if_requested()
            with shutdown.deferred():
                sender = send(number)
                while not shutdown.requested:
                    await asyncio.sleep(0.01)
                await sender
            assert shutdown.received == [number]
            assert signal.getsignal(number) not in DEFAULTS
            shutdown.raise_if_requested()

    with pytest.raises(Stopped) as stopped:
        await asyncio.create_task(work())
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value) == f"stopped by {number.name}"
    assert signal.getsignal(number) in DEFAULTS


@pytest.mark.parametrize(("is_deferred", "signals"), [(True, 2), (False, 1)])
async def test_a_signal_that_is_not_deferred_cancels_and_everything_is_closed(is_deferred, signals):
    closed, received = [], []

    async def wait(shutdown):
        sender = send(signal.SIGINT, times=2)
        try:
            await asyncio.sleep(60)
        finally:
            received.extend(shutdown.received)
            await sender  # a further signal does not cut the closing short
            closed.append(True)

    async def work():
        async with Shutdown() as shutdown:
            if is_deferred:
                with shutdown.deferred():
                    await wait(shutdown)
            await wait(shutdown)

    with pytest.raises(Stopped) as stopped:
        await asyncio.create_task(work())
    assert len(received) == signals
    assert closed == [True]
    assert stopped.value.exit_code == 130
    assert str(stopped.value) == "stopped by SIGINT"


async def test_a_signal_after_the_deferred_work_cancels():
    async def work():
        async with Shutdown() as shutdown:
            with shutdown.deferred():
                pass
            sender = send(signal.SIGTERM)
            try:
                await asyncio.sleep(60)
            finally:
                await sender

    with pytest.raises(Stopped, match="SIGTERM"):
        await asyncio.create_task(work())


async def test_the_signals_of_one_ctrl_c_count_as_one():
    async def work():
        async with Shutdown() as shutdown:
            with shutdown.deferred():
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                    os.kill(os.getpid(), number)
                    await asyncio.sleep(0.05)
            return shutdown.received

    assert await asyncio.create_task(work()) == [signal.SIGINT]


async def test_a_cancellation_without_a_signal_stays_one():
    async def work():
        async with Shutdown():
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_after_a_request_is_raised_as_it_is():
    async def work():
        async with Shutdown() as shutdown:
            with shutdown.deferred():
                shutdown.request(signal.SIGINT)
                raise KeyError("of the work")

    with pytest.raises(KeyError, match="of the work"):
        await asyncio.create_task(work())


def in_thread(work):
    """Run a coroutine in a loop of another thread; return the thread, and where its result goes."""
    results = []

    def target():
        try:
            results.append(asyncio.run(work))
        except Stopped as stopped:
            results.append(stopped)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, results


def test_a_request_from_another_thread():
    """Where no signal arrives: in a notebook the program runs beside the cell's thread."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    shutdown, running = Shutdown(), threading.Event()

    async def work():
        async with shutdown:
            with shutdown.deferred():
                running.set()
                while not shutdown.requested:
                    await asyncio.sleep(0.01)
            return shutdown.received

    thread, results = in_thread(work())
    assert running.wait(10)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    shutdown.request_from_thread()
    thread.join(10)
    assert results == [[signal.SIGINT]]
    shutdown.request_from_thread()  # its loop has ended: nothing is left to stop
    assert shutdown.received == [signal.SIGINT]


def test_a_second_request_from_another_thread_cancels():
    shutdown, running = Shutdown(), threading.Event()

    async def work():
        async with shutdown:
            with shutdown.deferred():
                running.set()
                await asyncio.sleep(60)

    thread, results = in_thread(work())
    assert running.wait(10)
    shutdown.request_from_thread()
    assert not threading.Event().wait(SAME_S * 1.1)
    assert thread.is_alive()
    shutdown.request_from_thread()
    thread.join(10)
    assert [str(result) for result in results] == ["stopped by SIGINT"]


async def test_a_request_before_the_block_ends_it_as_it_begins():
    """While the model is loading, say."""
    shutdown, handler = Shutdown(), signal.getsignal(signal.SIGINT)
    shutdown.request_from_thread()
    with pytest.raises(Stopped, match="SIGINT"):
        async with shutdown:
            raise AssertionError("the block has begun")
    assert signal.getsignal(signal.SIGINT) == handler
