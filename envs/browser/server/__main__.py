"""Serve BrowserGym's MiniWoB over OpenEnv: `python -m envs.browser.server --workers 2`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from types import FrameType

from envs.browser.miniwob.tasks import tasks
from envs.browser.server.chromium import find_chromium
from envs.browser.server.chromium_pool import ChromiumPool
from envs.browser.server.local import READY


async def serve(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; print one line with the address when ready."""
    pool = ChromiumPool(args.workers, deadline_s=args.deadline_s, idle_s=args.idle_s)
    try:
        starting = asyncio.create_task(pool.start())
        await asyncio.to_thread(_import)  # takes seconds, while the browsers start
        await starting
        await _serve(pool, args)
    finally:
        await pool.stop()


def _import() -> None:
    import envs.browser.server.app  # noqa: F401

    tasks()


async def _serve(pool: ChromiumPool, args: argparse.Namespace) -> None:
    import uvicorn

    from envs.browser.server.app import build_app

    listener = socket.create_server((args.host, args.port), backlog=128)
    config = uvicorn.Config(
        build_app(pool, args.max_sessions),
        log_level="warning",
        # A trainer's event loop can stand still for minutes while it computes an update:
        # such a client is alive.
        ws_ping_interval=60.0,
        ws_ping_timeout=1800.0,
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if args.until_stdin_closes:
        # The parent holds the other end: at its death, however sudden, this end is readable.
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, lambda: setattr(server, "should_exit", True))
    if server.started:
        print(f"{READY}http://{args.host}:{listener.getsockname()[1]}", flush=True)
    await serving


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m envs.browser.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--workers", type=int, default=2, help="number of Chromiums")
    parser.add_argument("--max-sessions", type=int, default=32)
    parser.add_argument("--deadline-s", type=float, default=30.0, help="for a reset or a step")
    parser.add_argument("--idle-s", type=float, default=3600.0, help="until a session is given up")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when standard input does"
    )
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        # A parent with bound OpenMP threads hands its one core down to us and our browsers.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    find_chromium()  # fails at once where there is none
    signal.signal(signal.SIGTERM, _exit)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a server ends
        asyncio.run(serve(args))


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)  # the default would skip every `finally`


if __name__ == "__main__":
    main()
