"""Serve BrowserGym's MiniWoB over OpenEnv: `python -m envs.server --workers 2`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from types import FrameType

from envs.server.chromium import find_chromium
from envs.server.local import READY
from envs.server.supervisor import WorkerPool


async def serve(pool: WorkerPool, args: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; print one line with the address when ready."""
    import uvicorn

    from envs.server.app import build_app

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
    parser = argparse.ArgumentParser(prog="python -m envs.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--workers", type=int, default=2, help="processes, one Chromium each")
    parser.add_argument("--max-sessions", type=int, default=32)
    parser.add_argument("--deadline-s", type=float, default=30.0, help="for one call of a worker")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when standard input does"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _exit)
    if hasattr(os, "sched_setaffinity"):
        # A parent with bound OpenMP threads hands its one core down to us and our browsers.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    find_chromium()  # fails at once where there is none
    pool = WorkerPool(args.workers, args.deadline_s)
    try:
        starting = pool.start()
        import envs.server.app  # noqa: F401 (takes seconds, while the workers start)

        for started in starting:
            started.result()
        asyncio.run(serve(pool, args))
    except KeyboardInterrupt:
        pass  # Ctrl-C is how a server ends
    finally:
        pool.stop()


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(0)  # the default would skip `finally`


if __name__ == "__main__":
    main()
