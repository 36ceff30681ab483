import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.browser.server.local import LocalServer
from tests.support.site_server import SiteServer

PAGES = Path(__file__).with_name("pages")


@pytest.fixture(scope="session")
def sites():
    """A server of the tasks of `pages/`, and the sites behind them.

    Attributes:
        url: address of the browser server.
        site: the site of every task.
        other: another site with the same pages, which the tasks of `page_table` may load from.
        evil: a site that no task may load from.
        evil_udp: a socket that no page may send to.
    """
    with (
        SiteServer(PAGES) as site,
        SiteServer(PAGES) as other,
        SiteServer(PAGES) as evil,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as evil_udp,
        pytest.MonkeyPatch.context() as patch,
    ):
        evil_udp.bind(("127.0.0.1", 0))
        evil_udp.setblocking(False)
        site.names |= {"other": other.url, "evil": evil.url, "evil_port": str(evil.port)}
        site.names["evil_udp"] = str(evil_udp.getsockname()[1])
        patch.setenv("PAGES_SITE", site.url)
        patch.setenv("PAGES_ORIGINS", f"{other.url} {site.names['localhost']}")
        server = LocalServer(workers=2, max_sessions=32, task_file=str(PAGES / "tasks.py"))
        url = server.start()
        yield SimpleNamespace(url=url, site=site, other=other, evil=evil, evil_udp=evil_udp)
        server.close()
