"""Which arrivals at a page are reported, without a browser."""

import asyncio

import pytest

from envs.browser.record import capture
from envs.browser.record.capture import Capture
from envs.browser.server.errors import BrowserError

HERE = {"id": 1, "url": "http://s/here", "transitionType": "typed"}
THERE = {"id": 2, "url": "http://s/there#part", "transitionType": "typed"}
LINKED = THERE | {"transitionType": "link"}
SWAPPED = BrowserError("Not attached to an active page")


class History:
    """A session that answers with one state of the history after the other."""

    def __init__(self, *states):
        self._states = list(states)

    async def send(self, method):
        assert method == "Page.getNavigationHistory"
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        if isinstance(state, Exception):
            raise state
        return {"currentIndex": len(state) - 1, "entries": state}


def reported(*arrivals):
    """Return the addresses that are reported of (frame, whether it counts, states)."""
    events = []

    async def arrive():
        following = Capture(events.append)
        following._call = asyncio.ensure_future
        for frame, counts, *states in arrivals:
            await following._on_arrival(History(*states), frame, counts)

    asyncio.run(arrive())
    assert {event.kind for event in events} <= {"goto"}
    return [event.value for event in events]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(capture, "HISTORY_S", 0.1)


SETUP = ({"url": "http://s/here"}, False, [HERE])
TYPED = {"url": "http://s/there"}


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ((TYPED, True, [HERE, THERE]), ["/there#part"]),
        ((TYPED, True, [HERE], [HERE], [HERE, THERE]), ["/there#part"]),
        ((TYPED, True, SWAPPED, SWAPPED, [HERE, THERE]), ["/there#part"]),
        (({"url": "chrome-error://x/", "unreachableUrl": "http://s/there"}, True, [HERE, THERE]),
         ["/there#part"]),
        ((TYPED, True, [HERE, LINKED]), []),
        ((TYPED, False, [HERE, THERE]), []),
        ((TYPED, True, SWAPPED), []),
        (({"url": "http://s/here"}, True, [HERE]), []),  # loaded again
    ],
    ids=["known", "late", "swapped", "unreachable", "link", "setup", "gone", "again"],
)  # fmt: skip
def test_a_typed_address_is_reported_once_the_history_has_it(typed, expected):
    assert reported(SETUP, typed) == expected


def test_a_frame_of_the_page_does_not_ask_for_the_history():
    unasked = AssertionError("asked")
    frame = {"url": "http://s/frame", "parentId": "7"}
    assert reported((frame, True, unasked)) == []


def test_a_page_of_the_setup_that_is_looked_at_late_does_not_hide_what_is_typed_meanwhile():
    late = ({"url": "http://s/here"}, False, [HERE, THERE])
    assert reported(late, (TYPED, True, [HERE, THERE])) == ["/there#part"]
