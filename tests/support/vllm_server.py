"""A vLLM server in a process of its own, started as users start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.support.processes import alive, descendants

ROOT = Path(__file__).resolve().parents[2]


class VLLMServer:
    """A server process that can be killed and started again at the same address."""

    def __init__(self, model: str | Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.model, self.log = model, log

    def start(self, *options: str) -> None:
        """Start the process, with more options of `grpo serve-vllm`."""
        command = [sys.executable, "-m", "grpo", "serve-vllm", "--model", str(self.model)]
        command += ["--dtype", "float32", "--device", "cpu", "--vllm-url", self.url, *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until the server responds; end it if it does not."""
        end = time.monotonic() + 300  # seconds; a minute where the machine has nothing else to do
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
        self.process.kill()
        raise AssertionError(self.log.read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """Kill the server alone; its engine must end with it."""
        engine = descendants(self.process.pid)
        assert engine or self.process.poll() is not None
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 10
        while alive(engine):
            assert time.monotonic() < end
            time.sleep(0.05)

    async def until_running(self, number: int) -> None:
        """Wait until the server reports this number of running requests."""
        async with httpx.AsyncClient() as client:
            while True:
                metrics = (await client.get(f"{self.url}/metrics")).text.splitlines()
                lines = [line for line in metrics if line.startswith("vllm:num_requests_running{")]
                if float(lines[0].split()[-1]) == number:
                    return
