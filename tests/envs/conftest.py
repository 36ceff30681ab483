import pytest

from envs.browser.server.local import LocalServer


@pytest.fixture(scope="session")
def browser_server():
    server = LocalServer(workers=2, max_sessions=16)
    yield server
    server.close()


@pytest.fixture
def server(browser_server):
    """The server of the test run, restarted if an earlier test killed it."""
    browser_server.start()
    return browser_server
