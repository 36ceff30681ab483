import signal

import pytest
from hypothesis import settings

from tests.support.processes import chromiums

# A shell ignores SIGINT in what it starts in the background, and programs leave an ignored signal
# alone: the tests of signals would wait for ever.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if interrupt else signal.SIG_DFL)


# A busy machine is no fault: no example has a deadline.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def browsers():
    """Return a function: the main process of each Chromium of a `LocalServer`."""
    return lambda server: chromiums(server.processes())
