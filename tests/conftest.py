from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browsers():
    """Of a `LocalServer` the main process of each Chromium: those of a type are its children."""

    def find(server):
        found = []
        for pid in server.processes():
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"chrom" in command[0] and not any(arg.startswith(b"--type=") for arg in command):
                found.append(pid)
        return found

    return find
