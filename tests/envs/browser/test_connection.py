"""Connections to Hugging Face Spaces: address, token, start-up."""

import json
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from openenv.core.utils import hf_space_subdomain
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.http11 import Response

import envs.browser.connection
from envs.base import EnvError, Task
from envs.browser.connection import server_url, token_headers
from envs.browser.env import BrowserEnv

CLICK = Task("click-test", 0)
TOKEN = {"HF_TOKEN": "hf_secret"}
BEARER = {"X-HF-Authorization": "Bearer hf_secret"}


@pytest.mark.parametrize(
    "page",
    [
        "https://huggingface.co/spaces/Some-Owner/My_Env.v2",
        "http://huggingface.co/spaces/Some-Owner/My_Env.v2/",
        "https://hf.co/spaces/Some-Owner/My_Env.v2/tree/main",
        "https://www.huggingface.co/spaces/Some-Owner/My_Env.v2?logs=build",
        "https://huggingface.co/spaces/Some-Owner/My_Env.v2#top",
    ],
)
def test_a_spaces_page_is_translated_to_its_server(page):
    assert server_url(page) == "https://some-owner-my-env-v2.hf.space"
    assert server_url(page) == f"https://{hf_space_subdomain('Some-Owner/My_Env.v2')}.hf.space"
    assert BrowserEnv(page).base_url == server_url(page)


@pytest.mark.parametrize(
    "url",
    [
        "https://some-owner-my-env.hf.space",
        "http://127.0.0.1:8000",
        "http://10.0.0.7:7860/prefix",
        "https://example.org/huggingface.co/spaces/a/b",
        "https://huggingface.co/datasets/a/b",
    ],
)
def test_other_addresses_stay_unchanged(url):
    assert server_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://some-owner-my-env.hf.space",
        "wss://some-owner-my-env.hf.space/ws",
        "https://SOME-owner-my-env.HF.space:443",
        "http://127.0.0.1:8000",
        "http://localhost:8000",
        "ws://[::1]:8000",
    ],
)
def test_the_token_goes_to_spaces_and_to_this_machine(url):
    assert token_headers(url, TOKEN) == BEARER
    assert token_headers(url, {"HF_TOKEN": " hf_secret\n"}) == BEARER
    assert token_headers(url, {"HF_TOKEN": " "}) == {}
    assert token_headers(url, {}) == {}


@pytest.mark.parametrize(
    "url",
    [
        "http://some-owner-my-env.hf.space",
        "ws://some-owner-my-env.hf.space",
        "https://example.org",
        "https://example.org/x.hf.space",
        "https://x.hf.space@example.org",
        "https://x.hf.space.example.org",
        "https://evil-hf.space",
        "http://10.0.0.7:7860",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "some-owner-my-env.hf.space",
        "",
    ],
)
def test_the_token_goes_nowhere_else(url):
    assert token_headers(url, TOKEN) == {}


RESPONSE = {
    "observation": {
        "axtree_txt": "RootWebArea ''\n\t[13] button 'Click Me!'",
        "goal": "Click the button.",
        "url": "file:///miniwob/click-test.html",
    },
    "reward": 0.0,
    "done": False,
}


@asynccontextmanager
async def serving(*refusals):
    """Yield address and handshakes of a server that starts with these refusals."""
    handshakes, left = [], list(refusals)

    async def handler(connection):
        async for _ in connection:
            await connection.send(json.dumps({"type": "observation", "data": RESPONSE}))

    def process_request(connection, request):
        handshakes.append(request.headers)
        return left.pop(0) if left else None

    async with serve(handler, "127.0.0.1", 0, process_request=process_request) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", handshakes


def refusal(status, **headers):
    html = Headers({"Content-Type": "text/html", "Content-Length": "15", **headers})
    return Response(status, HTTPStatus(status).phrase, html, b"<html>no</html>")


async def test_the_handshake_carries_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with serving() as (url, handshakes):
        for headers in (None, {}, {"Authorization": "Bearer mine"}):
            env = BrowserEnv(url, headers=headers)
            await env.reset(CLICK)
            await env.close()
    assert [h.get("X-HF-Authorization") for h in handshakes] == ["Bearer hf_secret", None, None]
    assert [h.get("Authorization") for h in handshakes] == [None, None, "Bearer mine"]


async def test_a_redirect_is_not_followed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    async with serving() as (elsewhere, strangers):
        location = elsewhere.replace("http:", "ws:") + "/ws"
        async with serving(refusal(307, Location=location)) as (url, handshakes):
            env = BrowserEnv(url)
            with pytest.raises(EnvError, match=f"HTTP 307, a redirect to {location}") as error:
                await env.reset(CLICK)
            await env.close()
    assert len(handshakes) == 1
    assert strangers == []
    assert "hf_secret" not in str(error.value)


async def test_a_starting_space_is_waited_for(monkeypatch):
    monkeypatch.setattr(envs.browser.connection, "RETRY_S", 0.05)
    async with serving(refusal(503), refusal(502), refusal(503)) as (url, handshakes):
        env = BrowserEnv(url)
        assert (await env.reset(CLICK)).goal == "Click the button."
        assert len(handshakes) == 4
        await env.close()


async def test_a_space_that_does_not_start(monkeypatch):
    monkeypatch.setattr(envs.browser.connection, "RETRY_S", 0.2)
    async with serving(*[refusal(503)] * 100) as (url, handshakes):
        env = BrowserEnv(url, deadline_s=1.0)
        with pytest.raises(EnvError, match=r"HTTP 503 until the deadline: .* sleeps"):
            await env.reset(CLICK)
        assert 1 <= len(handshakes) <= 5
        with pytest.raises(EnvError, match="is dead"):
            await env.reset(CLICK)
        await env.close()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "HTTP 401: .*HF_TOKEN"),
        (404, "HTTP 404: .*HF_TOKEN"),
        (200, "HTTP 200 and no WebSocket: is this the address"),
        (400, "HTTP 400 and no WebSocket"),
    ],
)
async def test_other_refusals_are_final(status, message):
    async with serving(refusal(status)) as (url, handshakes):
        env = BrowserEnv(url)
        with pytest.raises(EnvError, match=message):
            await env.reset(CLICK)
        assert len(handshakes) == 1
        await env.close()
