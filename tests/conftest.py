import pytest

from tests.support.processes import chromiums


@pytest.fixture(scope="session")
def browsers():
    """Return a function: the main process of each Chromium of a `LocalServer`."""
    return lambda server: chromiums(server.processes())
