"""The real server against requests that are too large, and Chromiums that do not start."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from envs.base import EnvError
from envs.browser.limits import MAX_REQUEST
from envs.browser.server import command, slot
from envs.browser.server.local import LocalServer
from envs.browser.server.processes import last_lines

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[4]
MIB = 2**20


def resident_mib(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def post(server, path, body, **headers):
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    chunked = "Content-Length" not in headers
    connection.request("POST", path, body, headers, encode_chunked=chunked)
    response = connection.getresponse()
    return response.status, json.load(response)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("path", ["/step", "/reset", "/mcp", "/no-such-path"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_mb_is_refused_and_never_held(server, path, announced):
    headers = {"Content-Type": "application/json"}
    headers |= {"Content-Length": str(100 * MIB)} if announced else {"Transfer-Encoding": "chunked"}
    post(server, "/reset", b"{}", **{"Content-Length": "2", "Content-Type": "application/json"})
    before = resident_mib(server.pid)
    status, reply = post(server, path, (b"a" * MIB for _ in range(100)), **headers)
    assert (status, reply) == (413, {"detail": f"a request may have {MAX_REQUEST} bytes"})
    assert resident_mib(server.pid) < before + 50


def test_a_body_below_the_limit_arrives_whole(server):
    text = "a" * (MAX_REQUEST - 100)
    body = json.dumps({"task_name": text}).encode()
    length = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
    status, reply = post(server, "/reset", body, **length)
    assert status == 400
    assert reply["detail"].startswith("unknown task 'aaaa")


async def test_requests_without_a_session_of_their_own_wait_for_each_other(server):
    """None of them counts as a session: many at once would open as many pages."""
    length = {"Content-Length": "2", "Content-Type": "application/json"}
    sessions = []

    def ready():
        with urllib.request.urlopen(server.url + "/ready") as response:
            return json.load(response)["sessions"]

    before = await asyncio.to_thread(ready)
    posts = [asyncio.create_task(asyncio.to_thread(post, server, "/reset", b"{}", **length))
             for _ in range(6)]  # fmt: skip
    while not all(task.done() for task in posts):
        sessions.append(await asyncio.to_thread(ready))
    assert [task.result()[0] for task in posts] == [200] * 6
    assert max(sessions) == before + 1


async def test_a_message_over_the_limit_ends_its_own_session_only(server):
    url = server.url.replace("http", "ws") + "/ws"
    async with connect(url, max_size=None) as greedy, connect(url) as other:
        await greedy.send("a" * (MAX_REQUEST + 1))
        with pytest.raises(ConnectionClosed, match="1009"):
            await greedy.recv()
        await other.send(json.dumps({"type": "reset", "data": {"task_name": "click-test"}}))
        reply = json.loads(await other.recv())
        assert reply["data"]["observation"]["goal"] == "Click the button."


def chromium(tmp_path, script):
    path = tmp_path / "chrome"
    path.write_text(script)
    path.chmod(0o755)
    return str(path)


def serve(path, deadline_s):
    """Return the process of a server whose Chromium is at `path`."""
    code = (
        "import sys; from envs.browser.server import command, slot; "
        f"slot.START_DEADLINE_S = {deadline_s}; sys.exit(command.main([]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"GRPO_CHROMIUM": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("#!/bin/sh\necho no such library >&2\n", "its last output: no such library"),
        ("#!/bin/sh\nexit 1\n", "its last output: nothing"),
        (
            "#!/bin/sh\nprintf 'no JSON\\0' >&4; sleep 30\n",
            "cannot start {}: Connection closed while reading from the driver",
        ),
        ("#!/bin/sh\nexec sleep 60\n", "did not respond within 5 s"),
        ("#!/no/such/interpreter\n", "cannot start {}: Failed to launch: Error: spawn {} ENOENT"),
        ("\x7fELF", "ELF: not found"),
    ],
    ids=["exits", "exits silently", "garbage", "hangs", "no interpreter", "no program"],
)
def test_a_chromium_that_does_not_start_is_one_line(tmp_path, monkeypatch, capsys, script, message):
    path = chromium(tmp_path, script)
    monkeypatch.setenv("GRPO_CHROMIUM", path)
    monkeypatch.setattr(slot, "START_DEADLINE_S", 5)
    assert command.main([]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith(f"{message.replace('{}', path)}\n")
    assert path in err
    assert err.count("\n") == 1


def test_sigterm_ends_a_server_whose_chromium_hangs(tmp_path):
    process = serve(chromium(tmp_path, "#!/bin/sh\ntouch $0.started; exec sleep 60\n"), 60)
    end = time.monotonic() + 120
    while not (tmp_path / "chrome.started").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (0, "", "")


async def test_a_failed_start_is_tried_once_for_all_who_wait(tmp_path, monkeypatch):
    script = "#!/bin/sh\necho start >> $0.starts; echo broken >&2\nexit 1\n"
    monkeypatch.setenv("GRPO_CHROMIUM", chromium(tmp_path, script))
    server = LocalServer(workers=1)
    for times in (1, 2):
        errors = await asyncio.gather(*(server.ensure() for _ in range(20)), return_exceptions=True)
        assert {type(error) for error in errors} == {EnvError}
        assert len({str(error) for error in errors}) == 1
        assert str(errors[0]).endswith("its last output: broken")
        assert (tmp_path / "chrome.starts").read_text() == "start\n" * times


async def test_a_server_that_is_not_ready_in_time_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_CHROMIUM", chromium(tmp_path, "#!/bin/sh\nexec sleep 60\n"))
    server = LocalServer(workers=1, start_deadline_s=0.5)
    with pytest.raises(
        EnvError, match=r"^the browser server was not ready within 0\.5 s: nothing$"
    ):
        await server.ensure()
    assert not server.alive
    assert server.processes() == []


def test_the_line_that_says_why_a_process_ended():
    assert last_lines("a\nb\n\n") == "b"
    assert last_lines("a\nb\n\n", 3) == "a\nb"
    assert last_lines("\n") == "nothing"
    chromium_log = "[1:2:FATAL:sandbox.cc(1)] No usable sandbox!\n#0 0x55\n[end of stack trace]\n"
    assert last_lines(chromium_log) == "[1:2:FATAL:sandbox.cc(1)] No usable sandbox!"
