import pytest

from tests.support.faults import chromiums


@pytest.fixture(scope="session")
def browsers():
    """Of a `LocalServer` the main process of each Chromium."""
    return lambda server: chromiums(server.processes())
