"""What can be seen of the server without a browser."""

import os
import subprocess
import sys
import time

import pytest

from envs.base import EnvError
from envs.browser.server import chromium
from envs.browser.server.chromium import find_chromium
from envs.browser.server.local import LocalServer
from envs.browser.server.processes import kill_marked, marked


def test_the_library_imports_without_the_browsers_packages():
    code = (
        "import sys, envs.browser.env, envs.browser.server.local, envs.browser.server.chromium, envs.pool, "
        "envs.scripted, envs.checker; "
        "print([m for m in ('torch', 'openenv', 'playwright', 'browsergym') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_chosen_chromium(monkeypatch, tmp_path):
    mine = tmp_path / "chrome"
    mine.write_text("")
    monkeypatch.setenv("GRPO_CHROMIUM", str(mine))
    with pytest.raises(FileNotFoundError, match="GRPO_CHROMIUM must be an executable file"):
        find_chromium()
    mine.chmod(0o755)
    assert find_chromium() == str(mine)


def test_order_of_the_search(monkeypatch, tmp_path):
    monkeypatch.delenv("GRPO_CHROMIUM", raising=False)
    monkeypatch.setattr(chromium, "_BINARIES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="make setup"):
        find_chromium()
    download = tmp_path / "cache" / "chromium-1117" / "chrome-linux" / "chrome"
    download.parent.mkdir(parents=True)
    download.write_text("")
    download.chmod(0o755)
    assert find_chromium() == str(download)
    on_path = tmp_path / "google-chrome"
    on_path.write_text("")
    on_path.chmod(0o755)
    assert find_chromium() == str(on_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_marked_processes_are_killed_even_when_they_stand_alone():
    mark = f"GRPO_TEST_MARK={os.getpid()}"
    name, value = mark.split("=")
    command = [sys.executable, "-c", "import os, time; os.fork(); os.setpgid(0, 0); time.sleep(60)"]
    child = subprocess.Popen(command, env=os.environ | {name: value})
    end = time.monotonic() + 20
    while len(marked(mark)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(marked(mark)) == 2
    kill_marked(mark)
    child.wait()
    assert marked(mark) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_children_that_lost_the_mark_are_found():
    # As a browser's do: the mark is gone from their environment, the parent still has it.
    mark = f"GRPO_TEST_MARK=children-{os.getpid()}"
    name, value = mark.split("=")
    sleep = "import time; time.sleep(60)"
    start = "import subprocess, sys, time; "
    start += f"child = subprocess.Popen([sys.executable, '-c', {sleep!r}], env={{}}); {sleep}"
    parent = subprocess.Popen(
        [sys.executable, "-c", start],
        env=os.environ | {name: value},
        start_new_session=True,
    )
    end = time.monotonic() + 20
    while len(marked(mark)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    _, child = sorted(marked(mark), key=lambda pid: pid != parent.pid)
    parent.kill()
    parent.wait()
    assert marked(mark) == []
    assert marked(mark, session=parent.pid) == [child]  # an orphan
    kill_marked(mark, session=parent.pid)
    assert marked(mark, session=parent.pid) == []


@pytest.mark.browser
async def test_a_server_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setenv("GRPO_CHROMIUM", "/nowhere/chrome")
    server = LocalServer(workers=1)
    with pytest.raises(EnvError, match="GRPO_CHROMIUM must be an executable file"):
        await server.ensure()
    assert not server.alive
    assert server.processes() == []
    with pytest.raises(EnvError, match="call ensure"):
        _ = server.pid
