import asyncio
import socket
from contextlib import asynccontextmanager

import pytest

from envs.browser.record import recorder
from envs.browser.record.command import record
from tests.envs.browser.record.person import Person

DEADLINE_S = 60.0


class Recording:
    """A recording that runs, the person at it, and what it prints."""

    def __init__(self, person, lines, work):
        self.person = person
        self.work = work
        self.printed = []
        self._lines = lines

    async def line(self, *texts):
        """Wait for a line that holds these texts, and return it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                getting = asyncio.ensure_future(self._lines.get())
                await asyncio.wait({getting, self.work}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    self.work.result()  # raises what has ended it
                line = await getting
                self.printed.append(line)
                if all(text in line for text in texts):
                    return line

    async def ready(self, *texts):
        """Wait for the next episode, and turn to its page."""
        line = await self.line(", seed ", *texts)
        await self.person.sit_down()
        return line


@pytest.fixture(scope="session")
def recording():
    """Start a recording as a background task; yields a `Recording`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "SHOWN_S", 0.0)
        patch.setattr(recorder, "HOLD_S", 0.2)
        yield _recording


@asynccontextmanager
async def _recording(file, names, output, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = asyncio.Queue()
    options = {"wanted": 1, "seeds": range(1000)} | options
    work = asyncio.create_task(
        record(str(file), names, output, debugging_port=port, say=lines.put_nowait, **options)
    )
    person = Person(port)
    recording = Recording(person, lines, work)
    try:
        yield recording
    finally:
        while not lines.empty():
            recording.printed.append(lines.get_nowait())
        print("\n".join(recording.printed))
        await person.leave()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
