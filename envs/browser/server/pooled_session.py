"""One session of a pool: deadlines, and the end of a session whose infrastructure failed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from envs.base import TaskError
from envs.browser.server.browsergym_session import BrowserGymSession
from envs.browser.server.errors import BrowserError, SessionError
from envs.browser.server.slot import Slot

if TYPE_CHECKING:
    from envs.browser.server.chromium_pool import AnySession, ChromiumPool, Kind

CLOSE_DEADLINE_S = 10.0


class PooledSession:
    """One session with deadlines; after one failure it is lost.

    Created in any thread, called in the pool's event loop.
    """

    def __init__(self, pool: ChromiumPool, slot: Slot):
        self._pool, self._slot = pool, slot
        self._session: AnySession | None = None
        self._kind: Kind | None = None
        self._lost = ""
        self._busy = False
        self._used = time.monotonic()
        slot.sessions.add(self)

    def idle_for(self) -> float:
        """Return the seconds since the last call ended, 0 during a call."""
        return 0.0 if self._busy else time.monotonic() - self._used

    async def call(self, method: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Await `reset` or `step` of a session of the kind that the task needs.

        Raises:
            TaskError: there is no such task, or its own code failed.
            SessionError: the session is lost or busy, or no episode is running.
        """
        if self._lost:
            raise SessionError(f"the session is lost ({self._lost}): open a new one")
        if self._busy:
            raise SessionError("the session is busy with another call")
        self._busy = True
        try:
            async with asyncio.timeout(self._pool.deadline_s):
                if method == "reset":
                    await self._prepare(self._pool.kind(args[0]))
                if self._session is None:
                    raise SessionError("no episode is running: reset first")
                result: dict[str, Any] = await getattr(self._session, method)(*args, **options)
                return result
        except TaskError:
            raise
        except SessionError as error:
            if self._kind != "miniwob":
                self.discard(str(error))
            raise
        except TimeoutError:
            self.discard(f"no response within {self._pool.deadline_s:g} s")
        except BrowserError as error:
            self.discard(str(error))
        except asyncio.CancelledError:
            self.discard("a call was cancelled")
            raise
        finally:
            self._busy, self._used = False, time.monotonic()
        raise SessionError(f"the session is lost: {self._lost}")

    def discard(self, reason: str) -> None:
        """Give up the session and close it in the background."""
        self._lost = self._lost or reason
        self._slot.sessions.discard(self)
        session, self._session = self._session, None
        if session is not None:
            self._pool.run(self._close(session))

    def close(self) -> None:
        """Give up the session; may be called in any thread."""
        self._pool.loop.call_soon_threadsafe(self.discard, "it was closed")

    async def _prepare(self, kind: Kind) -> None:
        """Open a session of a kind, unless there is one already; a failure loses the session."""
        if kind == self._kind:
            return
        if self._session is not None:
            self._pool.run(self._close(self._session))
            self._session = None
        self._session, self._kind = await self._pool.session(kind, self._slot), kind
        if not isinstance(self._session, BrowserGymSession):
            await self._session.open()

    async def _close(self, session: AnySession) -> None:
        try:
            await asyncio.wait_for(session.close(), CLOSE_DEADLINE_S)
        except (BrowserError, SessionError, TaskError):
            pass  # the browser is gone, and the session's pages with it
        except TimeoutError:
            # A browser that cannot close a page hangs, and so do its other pages.
            if not isinstance(session, BrowserGymSession):  # whose browsers are its own
                await self._slot.stop()
