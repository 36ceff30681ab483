"""Nothing that an agent does on a page reaches a site that the task does not allow.

Every way of `pages/ways_out.py` reaches the other site in a browser that nothing holds back.
"""

import asyncio
import re
from urllib.parse import urlsplit

import pytest

from envs.base import EnvError, Task
from envs.browser.env import BrowserEnv
from tests.envs.browser.pages.ways_out import LOADS, NAVIGATIONS, task_name

pytestmark = pytest.mark.browser

SESSIONS = 6
GO = re.compile(r"^(?:button|link|image) 'Go' \[(\w+)\]", re.MULTILINE)
NOT_TOLD = {"link with a ping"}  # the link itself stays on the page


async def go(url, ways):
    """Click `Go` on the page of each way; return the observations, or errors, by way."""
    seen, env = {}, BrowserEnv(url)
    for way in ways:
        try:
            observation = await env.reset(Task(task_name(way), 0))
            result = await env.step(f"click('{GO.search(observation.page)[1]}')")
            seen[way] = result.observation
        except EnvError as error:
            seen[way] = error
            await env.close()
            env = BrowserEnv(url)
    await env.close()
    return seen


async def go_everywhere(sites, ways):
    """Return what went wrong with the sessions: none is lost, and none leaves the site."""
    ways = list(ways)
    lanes = await asyncio.gather(*(go(sites.url, ways[i::SESSIONS]) for i in range(SESSIONS)))
    seen = {way: observation for lane in lanes for way, observation in lane.items()}
    lost = {way: str(error) for way, error in seen.items() if isinstance(error, EnvError)}
    assert lost == {}
    assert [way for way in seen if not seen[way].url.startswith(sites.site.url)] == []
    return seen


def assert_nothing_came(sites):
    assert sites.evil.requests == []
    assert sites.evil.connections == 0
    with pytest.raises(BlockingIOError):
        sites.evil_udp.recv(2000)


async def test_no_way_leads_out_and_the_model_is_told(sites):
    seen = await go_everywhere(sites, NAVIGATIONS)
    assert_nothing_came(sites)
    told = {way for way in seen if seen[way].error.endswith("is outside of the site")}
    assert told == set(NAVIGATIONS) - NOT_TOLD


async def test_nothing_is_loaded_from_outside(sites):
    await go_everywhere(sites, LOADS)
    assert_nothing_came(sites)


async def test_goto_stays_on_the_site(sites, tmp_path):
    secret = tmp_path / "secret.html"
    secret.write_text("<h1>Secret</h1>")
    site, evil = urlsplit(sites.site.url).netloc, urlsplit(sites.evil.url).netloc
    refused = [
        *(f"http://{evil}", f"//{evil}", f"HTTP://{evil}/", f" http://{evil}", f"ws://{evil}"),
        *(f"https://{site}", f"http://{site}@{evil}/", f"http://{site}.{evil}/", f"ftp://{site}/"),
        *(f"http://{evil}#{site}", f"/redirect?to=http://{evil}/", f"http://localhost:{evil}/"),
        *(f"javascript:location='http://{evil}/'", f"data:text/html,<img src=http://{evil}/>"),
        *(f"view-source:http://{evil}/", f"blob:http://{evil}/a", f"filesystem:http://{site}/a"),
        *(secret.as_uri(), f"view-source:{secret.as_uri()}", "about:blank", "chrome://version"),
    ]
    # What these mean depends on who reads them: Python's urljoin, or the browser's.
    ambiguous = [
        *(f"http:\\\\{evil}/", f"/\\{evil}", f"\\\\{evil}", f"http:{evil}", f"http:///{evil}"),
        *(
            f"http://{evil}\\@{site}/",
            f"http://{site}\\@{evil}/",
            f"\t//{evil}",
            f"h\nttp://{evil}",
        ),
    ]
    env = BrowserEnv(sites.url)
    await env.reset(Task("goto", 0))
    told, urls = [], set()
    for address in [*refused, *ambiguous]:
        result = await env.step(f"goto({address!r})")
        urls.add(result.observation.url)
        if result.observation.error.startswith("goto failed: "):
            told.append(address)
        assert "Secret" not in result.observation.page
    await env.close()
    assert [address for address in refused if address not in told] == []
    assert [url for url in urls if not url.startswith(f"http://{site}/")] == []
    assert_nothing_came(sites)


async def test_localhost_is_another_origin_than_its_address(sites):
    env = BrowserEnv(sites.url)
    await env.reset(Task("goto", 0))
    result = await env.step(f"goto('{sites.site.names['localhost']}/only_here')")
    assert "is outside of the site" in result.observation.error
    result = await env.step(f"goto('{sites.site.url}/only_there')")
    assert result.observation.url.endswith("/only_there")
    await env.close()
    asked = [request for request in sites.site.requests if "/only_" in request]
    assert asked == ["GET /only_there"]


async def test_a_site_at_localhost_opens_the_way_to_no_other_name(sites):
    env = BrowserEnv(sites.url)
    observation = await env.reset(Task("localhost", 0))
    assert observation.url.startswith(sites.site.names["localhost"])
    links = re.findall(r"^link '(.*)' \[(\w+)\]", observation.page, re.MULTILINE)
    told = [(await env.step(f"click({link!r})")).observation.error for _, link in links]
    await env.close()
    assert ["is outside of the site" in error for error in told] == [True] * 6
    assert_nothing_came(sites)


async def test_no_address_shows_what_is_not_on_the_network(sites):
    env = BrowserEnv(sites.url)
    observation = await env.reset(Task("local", 0))
    ids = re.findall(r"^(?:link|button) .* \[(\w+)\]", observation.page, re.MULTILINE)
    assert len(ids) == 34
    for element in ids:
        observation = (await env.step(f"click({element!r})")).observation
        assert observation.url == f"{sites.site.url}/local.html"
        assert not re.search("root:.*:|^heading", observation.page, re.MULTILINE)
    await env.close()
