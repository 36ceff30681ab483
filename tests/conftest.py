from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def browsers():
    """Of a `LocalServer` the main process of each Chromium: those of a type are its children."""

    def find(server):
        found = []
        for pid in server.processes():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            # A child may show its command as one text, with spaces where others have zeros.
            if b"chrom" in command.split(b"\0")[0] and b"--type=" not in command:
                found.append(pid)
        return found

    return find
