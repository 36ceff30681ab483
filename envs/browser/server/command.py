"""The command that serves browser tasks over OpenEnv: `grpo serve-env`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from envs.base import TaskError
from envs.browser.foreign_text import one_line
from envs.browser.limits import MAX_REQUEST
from envs.browser.miniwob.tasks import tasks
from envs.browser.server.chromium import find_chromium
from envs.browser.server.chromium_pool import ChromiumPool
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.local import READY, SERVER, check_packages
from envs.browser.task_file import TaskFile


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
        return number

    parse.__name__ = kind.__name__  # argparse's error for other text names it
    return parse


def _host(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty: 0.0.0.0 is every address")
    return text


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {text}")
    return number


OPTIONS: dict[str, dict[str, tuple[str | float, Callable[[str], str | float], str, str]]] = {
    "address": {
        "--host": (
            "127.0.0.1",
            _host,
            "ADDRESS",
            "IPv4 address to listen on; 0.0.0.0 for access from other machines",
        ),
        "--port": (0, _port, "N", "TCP port; 0 for a free one"),
    },
    "capacity": {
        "--workers": (2, _positive(int), "N", "number of Chromiums"),
        "--max-sessions": (32, _positive(int), "N", "maximum number of concurrent sessions"),
    },
    "time limits": {
        "--deadline-s": (
            30.0,
            _positive(float),
            "SECONDS",
            "time that a reset or a step may take before its session is lost",
        ),
        "--idle-s": (
            3600.0,
            _positive(float),
            "SECONDS",
            "time after which an unused session is closed",
        ),
    },
}
"""The options by theme: name -> (default, type, metavar, help)."""


def main(argv: Sequence[str] | None = None, *, prog: str = "grpo serve-env") -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        argv: arguments; None for those of this process.
        prog: name of the command in its help and errors.

    Returns:
        The exit code, with one line on standard error: 2 if the server cannot start as it was asked
        to, 1 if Chromium or the HTTP server did not start.

    Raises:
        SystemExit: an argument is wrong (code 2), or `--help` was asked for (code 0).
    """
    args = _parser(prog).parse_args(argv)
    file = None
    if hasattr(os, "sched_setaffinity"):
        # A parent with bound OpenMP threads passes its single core on to this process.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        check_packages(SERVER)
        find_chromium()
        if args.task_file:
            file = TaskFile(args.task_file)
        listener = _bind(args.host, args.port)
    except (OSError, ModuleNotFoundError, TaskError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    try:
        with listener, contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(serve(listener, args, file))  # until Ctrl-C or SIGTERM
    except (BrowserError, SessionError, OSError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


async def serve(
    listener: socket.socket, args: argparse.Namespace, file: TaskFile | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; print one line with the address when ready.

    Args:
        listener: a bound socket.
        args: what the command's parser returned.
        file: the user's own tasks; None for none.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    # Until uvicorn has its own handler. One that raises would do so in the middle of anything.
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    pool = ChromiumPool(
        args.workers,
        deadline_s=args.deadline_s,
        idle_s=args.idle_s,
        task_file=file,
    )
    try:
        starting = asyncio.create_task(pool.start())
        await asyncio.gather(starting, asyncio.to_thread(_import))  # imports take seconds, too
        signal.signal(signal.SIGTERM, _exit)  # uvicorn raises the signal again when it has stopped
        await _serve(pool, listener, args)
    finally:
        await pool.stop()


def _import() -> None:
    import envs.browser.server.app  # noqa: F401

    tasks()


async def _serve(pool: ChromiumPool, listener: socket.socket, args: argparse.Namespace) -> None:
    import uvicorn

    from envs.browser.server.app import build_app

    config = uvicorn.Config(
        build_app(pool, args.max_sessions),
        log_level="warning",
        # A trainer's event loop can block for minutes during an update; its client is alive.
        ws_max_size=MAX_REQUEST,
        ws_max_queue=4,  # messages that wait; a client sends one at a time
        ws_ping_interval=60.0,
        ws_ping_timeout=1800.0,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not server.started:
        await serving
        raise OSError("the HTTP server did not start")
    if args.until_stdin_closes:
        # The parent holds the other end: when it dies, however suddenly, this end is readable.
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, lambda: setattr(server, "should_exit", True))
    print(f"{READY}http://{args.host}:{listener.getsockname()[1]}", flush=True)
    await serving


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {one_line(message)}\n")  # one line, without the usage


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        description="Serve browser tasks in headless Chromium, with OpenEnv's protocol: MiniWoB's, "
        "BrowserGym's other benchmarks, and your own.",
    )
    parser.add_argument(
        "task_file", nargs="?", default="", help="Python file of your own tasks (docs/your-site.md)"
    )
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for name, (default, kind, metavar, text) in options.items():
            text = f"{text} (default: {default})"
            group.add_argument(name, default=default, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="exit when standard input closes, so that the server never outlives its parent",
    )
    return parser


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound and does not listen yet: no client waits for the start."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, ValueError, TypeError) as error:  # not a host name: too long, or with a NUL
        listener.close()
        reason = getattr(error, "strerror", "") or error
        raise OSError(one_line(f"cannot listen on {host[:80]}:{port}: {reason}")) from error
    return listener


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)  # the default action would skip every `finally`
