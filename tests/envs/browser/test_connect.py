"""A tab in a browser that runs already."""

import asyncio
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from envs.base import EnvError, StepResult, Task, TaskError
from envs.browser.live import LiveEnv, open_live
from envs.browser.server.chromium import chromium_args, find_chromium
from envs.browser.url_task import UrlTask
from tests.support.site_server import SiteServer

TODO = Path(__file__).parents[3] / "examples" / "sites" / "todo" / "tasks.py"


@dataclass
class Browser:
    """A browser that its user has started."""

    process: subprocess.Popen[bytes]
    address: str

    def tabs(self) -> list[str]:
        """Return the addresses of its tabs."""
        return [tab["url"] for tab in self.described()]

    def described(self) -> list[dict[str, str]]:
        """Return what it tells about its tabs."""
        with urllib.request.urlopen(f"{self.address}/json") as response:
            return [tab for tab in json.load(response) if tab["type"] == "page"]

    def leave(self, url: str) -> None:
        """Close the tabs with an address."""
        for tab in self.described():
            if tab["url"] == url:
                urllib.request.urlopen(f"{self.address}/json/close/{tab['id']}").close()

    def visit(self, url: str) -> None:
        """Open a tab."""
        request = urllib.request.Request(f"{self.address}/json/new?{quote(url)}", method="PUT")
        urllib.request.urlopen(request).close()

    def evaluate(self, url: str, expression: str) -> Any:
        """Return the value of JavaScript in the tab with this address."""

        async def run() -> Any:
            from playwright.async_api import async_playwright

            async with async_playwright() as playwright:
                browser = await playwright.chromium.connect_over_cdp(self.address)
                pages = browser.contexts[0].pages
                page = next(page for page in pages if page.url.startswith(url))
                page.on("dialog", lambda dialog: None)
                return await page.evaluate(expression)

        return asyncio.run(run())


@contextmanager
def started(profile: Path) -> Iterator[Browser]:
    """Start a browser by hand."""
    options = ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        [find_chromium(), *chromium_args(), *options], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        found = (re.search(rb"ws://(127\.0\.0\.1:\d+)/", line) for line in process.stderr)
        yield Browser(process, "http://" + next(m[1].decode() for m in found if m))
        process.kill()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def site() -> Iterator[SiteServer]:
    with SiteServer() as site:
        yield site


@pytest.fixture
def other() -> Iterator[SiteServer]:
    with SiteServer() as other:
        yield other


def page(site: SiteServer, html: str) -> str:
    return f"{site.url}/html?{quote('<!doctype html>' + html)}"


def element(env: LiveEnv, part: str) -> str:
    """Return the id of the first element whose line has this text."""
    lines = env._observation.page.splitlines()
    return next(str(re.findall(r"\[(\w+)\]", line)[-1]) for line in lines if part in line)


def click(address: str, connect: str, name: str) -> StepResult:
    """Open a page in the running browser, and click an element."""

    async def play() -> StepResult:
        async with open_live(UrlTask(address, "Go on."), connect=connect) as env:
            await env.reset(Task("act", 0), screenshot=True)
            return await env.step(f"click({element(env, name)!r})")

    return asyncio.run(play())


def test_the_browser_survives_and_the_tab_stays(browser: Browser, site: SiteServer) -> None:
    mine = page(site, "<title>mine</title>My own tab")
    browser.visit(mine)
    before = browser.tabs()

    async def play() -> tuple[bool, str]:
        async with open_live(TODO, connect=browser.address) as env:
            observation = await env.reset(Task("AddTodo", 3), screenshot=True)
            assert observation.screenshot is not None
            await env.step(env.demonstrate())
            result = await env.step(env.demonstrate())
            return result.success, result.observation.url

    success, url = asyncio.run(play())
    assert success
    assert browser.process.poll() is None
    assert sorted(browser.tabs()) == sorted([*before, url])
    assert browser.evaluate(mine, "[window.browserServer === undefined, document.title]") == [
        True,
        "mine",
    ]


def test_its_cookies_are_the_users(browser: Browser, site: SiteServer) -> None:
    mine = page(site, "<script>document.cookie = 'user=Ann'</script>")
    browser.visit(mine)
    shows = page(site, "<p><script>document.write(document.cookie)</script>")

    async def play() -> str:
        async with open_live(UrlTask(shows, "Go on."), connect=browser.address) as env:
            return (await env.reset(Task("act", 0))).page

    assert "user=Ann" in asyncio.run(play())


def test_dialogs_of_other_tabs_are_not_answered(browser: Browser, site: SiteServer) -> None:
    ask = "<title>open</title><script>fetch('/held').then(() => document.title = confirm('?'))"
    mine = page(site, f"{ask}</script>")
    browser.visit(mine)
    site.wait_for("GET /held")

    async def play() -> list[str]:
        async with open_live(UrlTask(page(site, "<p>Hi"), "Go on."), connect=browser.address) as e:
            await e.reset(Task("act", 0))
            site.release()
            await e.step("noop()")
            return [tab["title"] for tab in browser.described() if tab["url"] == mine]

    assert asyncio.run(play()) == ["open"]
    browser.leave(mine)  # Playwright cannot connect while a dialog is open


def test_its_own_dialogs_are_read_and_answered(browser: Browser, site: SiteServer) -> None:
    html = "<button onclick=\"this.textContent = confirm('Sure?')\">Ask</button>"

    async def play() -> tuple[str, str]:
        async with open_live(UrlTask(page(site, html), "Go."), connect=browser.address) as env:
            await env.reset(Task("act", 0))
            asked = await env.step(f"click({element(env, 'Ask')!r})")
            answered = await env.step(f"click({element(env, 'OK')!r})")
            return asked.observation.page, answered.observation.page

    asked, answered = asyncio.run(play())
    assert "dialog 'Sure?'" in asked
    assert "button 'true'" in answered


@pytest.mark.parametrize("target", ["_self", "_blank"])
def test_outside_of_the_site_is_refused(
    browser: Browser, site: SiteServer, other: SiteServer, target: str
) -> None:
    html = f"<a target={target} href={other.url}/echo>Leave</a>"
    result = click(page(site, html), browser.address, "Leave")
    assert result.observation.error.endswith("/echo is outside of the site")
    assert result.observation.url.startswith(site.url)
    assert not any(tab.startswith(other.url) for tab in browser.tabs())
    if target == "_self":  # a new tab's first request can be faster than its refusal
        assert other.requests == []


@pytest.mark.parametrize("rel", ["opener", "noopener"])
def test_a_new_tab_is_in_front(browser: Browser, site: SiteServer, rel: str) -> None:
    html = f"<a target=_blank rel={rel} href=/echo?q=1>More</a>"
    result = click(page(site, html), browser.address, "More")
    assert "GET q=1" in result.observation.page


def test_a_page_keeps_its_policy_and_is_read(browser: Browser, site: SiteServer) -> None:
    policy = "default-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    meta = f'<meta http-equiv=Content-Security-Policy content="{policy}">'
    html = f"{meta}<button>Before</button><script>document.write('scripts run')</script>"
    result = click(page(site, html), browser.address, "Before")
    assert result.observation.page.startswith("button 'Before'")
    assert "scripts run" not in result.observation.page


def test_a_frame_of_another_site_is_left_out(browser: Browser, site: SiteServer) -> None:
    frame = f"{site.names['localhost']}/echo?q=inside"
    html = f"<button>Before</button><iframe src={frame}></iframe><button>After</button>"
    task = UrlTask(page(site, html), "Go on.", allowed_origins=[site.names["localhost"]])

    async def play() -> str:
        async with open_live(task, connect=browser.address) as env:
            return (await env.reset(Task("act", 0), screenshot=True)).page

    text = asyncio.run(play())
    assert "button 'Before'" in text
    assert "button 'After'" in text


def test_a_task_with_cookies_of_its_own_is_refused(browser: Browser, site: SiteServer) -> None:
    task = UrlTask(site.url, "Go on.")
    task.cookies = [{"name": "user", "value": "Bob"}]

    async def play() -> None:
        async with open_live(task, connect=browser.address) as env:
            await env.reset(Task("act", 0))

    with pytest.raises(TaskError, match="its cookies cannot be used"):
        asyncio.run(play())


@pytest.mark.parametrize("address", ["http://example.com:9222", "127.0.0.1:9222", "http://[::1"])
def test_an_address_elsewhere_is_refused(address: str) -> None:
    async def play() -> None:
        async with open_live(TODO, connect=address):
            raise AssertionError("it was opened")

    with pytest.raises(ValueError, match=r"must be such as http://127\.0\.0\.1:9222"):
        asyncio.run(play())


def test_no_browser_at_the_address() -> None:
    async def play() -> None:
        async with open_live(TODO, connect="http://127.0.0.1:9"):
            raise AssertionError("it was opened")

    with pytest.raises(EnvError, match=r"no browser at http://127\.0\.0\.1:9: .*") as error:
        asyncio.run(play())
    assert "\n" not in str(error.value)


def test_its_end_is_an_error_of_the_environment(tmp_path: Path) -> None:
    async def play() -> None:
        async with open_live(TODO, connect=own.address) as env:
            await env.reset(Task("AddTodo", 0))
            own.process.kill()
            with pytest.raises(EnvError, match="browser: the browser is gone"):
                await env.step(env.demonstrate())

    with started(tmp_path) as own:
        asyncio.run(play())
