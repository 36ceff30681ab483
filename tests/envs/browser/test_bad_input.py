"""The server's errors for a client's mistakes, which the session survives."""

import asyncio
import json
import os
import signal
import urllib.error
import urllib.request

import pytest
from websockets.asyncio.client import connect

pytestmark = pytest.mark.browser

CLICK = {"action_str": "click('13')"}


@pytest.fixture
def server(browser_server):
    browser_server.start()
    return browser_server


@pytest.fixture
async def ask(server):
    """Return a function that sends one message over one WebSocket and awaits the reply."""
    async with connect(server.url.replace("http", "ws") + "/ws", max_size=None) as socket:

        async def ask(kind, data=None):
            message = {"type": kind} | ({} if data is None else {"data": data})
            await socket.send(json.dumps(message))
            return json.loads(await asyncio.wait_for(socket.recv(), 30))

        yield ask


async def works(ask):
    """Return True if the session still plays an episode."""
    reply = await ask("reset", {"task_name": "click-test", "seed": 0})
    assert reply["data"]["observation"]["goal"] == "Click the button."
    reply = await ask("step", CLICK)
    return reply["data"]["reward"] == 1.0 and reply["data"]["done"]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("reset", {"task_name": "clik-test"}, "unknown task 'clik-test'; close names: click-test"),
        ("reset", {"task_name": "../../../etc/passwd"}, "unknown task"),
        ("reset", {"task_name": 7}, "task"),
        ("reset", {"seed": "seven"}, "seed"),
        ("reset", {"seed": -1}, "seed"),
        ("reset", {"seed": 2**40}, "seed"),
        ("reset", {"screenshot": "yes"}, "screenshot"),
        ("step", CLICK, "no episode is running: reset first"),
        ("step", {"action_str": 7}, "action_str"),
        ("step", {}, "action_str"),
        ("stepp", {}, "stepp"),
    ],
)
async def test_refused_with_a_reason(ask, kind, data, message):
    reply = await ask(kind, data)
    assert reply["type"] == "error", reply
    assert message in json.dumps(reply["data"]).replace("\\'", "'")
    assert await works(ask)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("click('" + "9" * 2**20 + "')", "expected one action"),
        ("__import__('os').system('touch /tmp/owned')", "expected one action"),
        ("click(open('/etc/passwd').read())", "expected click('12')"),
        ("click('13'); noop()", "expected one action"),
        ("goto('file:///etc/passwd')", "MiniWoB's tasks have no action goto"),
        ("click('\"] , body')", "expected click('12')"),
        ("click('999')", "there is no element 999"),
    ],
)
async def test_text_that_is_not_an_action_changes_nothing(ask, text, message):
    first = (await ask("reset", {"task_name": "click-test", "seed": 0}))["data"]["observation"]
    reply = (await ask("step", {"action_str": text}))["data"]
    assert message in reply["observation"]["error"]
    assert reply["observation"]["last_action_error"]
    assert (reply["reward"], reply["done"]) == (0.0, False)
    assert reply["observation"]["axtree_txt"] == first["axtree_txt"]
    assert (await ask("step", CLICK))["data"]["reward"] == 1.0
    assert await works(ask)


async def test_an_unknown_key_is_refused_after_its_element_is_focused(ask):
    """As Playwright does."""
    first = (await ask("reset", {"task_name": "click-test", "seed": 0}))["data"]["observation"]
    reply = (await ask("step", {"action_str": "press('13', 'Banana')"}))["data"]["observation"]
    assert reply["error"] == "press failed: unknown key 'Banana'"
    button = "[13] button 'Click Me!'"
    assert reply["axtree_txt"] == first["axtree_txt"].replace(button, f"{button}, focused")
    assert button in first["axtree_txt"]


async def test_a_step_after_the_end_is_refused(ask):
    assert await works(ask)
    reply = await ask("step", CLICK)
    assert reply["type"] == "error"
    assert "no episode is running: reset first" in reply["data"]["message"]
    assert await works(ask)


async def test_state_names_task_and_seed(ask):
    await ask("reset", {"task_name": "miniwob.login-user", "seed": 11, "episode_id": "mine"})
    await ask("step", {"action_str": "noop()"})
    state = (await ask("state"))["data"]
    expected = {
        "task_name": "miniwob.login-user",
        "seed": 11,
        "episode_id": "mine",
        "step_count": 1,
    }
    assert {name: state[name] for name in expected} == expected


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def post(url, body):
    headers = {"Content-Type": "application/json"}
    return get(urllib.request.Request(url, json.dumps(body).encode(), headers))


async def test_requests_without_a_session(server):
    for path, body, expected in [
        ("step", {"action": CLICK}, (409, "no episode is running: reset first")),
        ("reset", {"task_name": "clik-test"}, (400, "unknown task 'clik-test'")),
        ("reset", {"seed": -1}, (422, "seed")),
        ("mcp", {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/close",
                 "params": {"session_id": "mine"}}, (200, "Unknown session_id: mine")),
    ]:  # fmt: skip
        status, reply = await asyncio.to_thread(post, f"{server.url}/{path}", body)
        assert status == expected[0], reply
        assert expected[1] in json.dumps(reply), reply


async def test_health_and_readiness(server, browsers):
    status, health = await asyncio.to_thread(get, f"{server.url}/health")
    assert (status, health["status"]) == (200, "healthy")
    status, ready = await asyncio.to_thread(get, f"{server.url}/ready")
    assert (status, ready["ready"], ready["browsers"]) == (200, True, 2)
    os.kill(browsers(server)[0], signal.SIGKILL)
    seen = []
    async with asyncio.timeout(60):
        while seen[-2:] != [503, 200]:  # a browser is restarted without a request
            status, _ = await asyncio.to_thread(get, f"{server.url}/ready")
            if seen[-1:] != [status]:
                seen.append(status)
            await asyncio.sleep(0.02)


async def test_a_client_that_vanishes_leaves_no_session(server):
    connection = await connect(server.url.replace("http", "ws") + "/ws")
    await connection.send(json.dumps({"type": "reset", "data": {"task_name": "click-test"}}))
    await connection.recv()
    _, before = await asyncio.to_thread(get, f"{server.url}/ready")
    connection.transport.abort()
    async with asyncio.timeout(30):
        while (await asyncio.to_thread(get, f"{server.url}/ready"))[1]["sessions"] > 0:
            await asyncio.sleep(0.05)
    assert before["sessions"] == 1
