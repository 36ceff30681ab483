import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from envs.browser.record.command import record
from tests.envs.browser.record.person import Person

DEADLINE_S = 60.0


class Recording:
    """A recording that runs, the person at it, and what it prints."""

    def __init__(self, person, lines):
        self.person = person
        self.printed = []
        self._lines = lines

    async def line(self, *texts):
        """Wait for a line that holds these texts, and return it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = await self._lines.get()
                self.printed.append(line)
                if all(text in line for text in texts):
                    return line

    async def ready(self, *texts):
        """Wait for the next episode, and turn to its page."""
        line = await self.line("seed ", *texts)
        await self.person.sit_down()
        return line


@pytest.fixture
def recording():
    """Start a recording as a background task; yields a `Recording`."""

    @asynccontextmanager
    async def start(file, names, output, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        lines = asyncio.Queue()
        options = {"wanted": 1, "seeds": range(1000)} | options
        work = asyncio.create_task(
            record(str(file), names, output, debugging_port=port, say=lines.put_nowait, **options)
        )
        person = Person(port)
        recording = Recording(person, lines)
        recording.work = work
        try:
            yield recording
        finally:
            while not lines.empty():
                recording.printed.append(lines.get_nowait())
            print("\n".join(recording.printed))
            await person.leave()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    return start
