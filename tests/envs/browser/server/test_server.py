"""What can be seen of the server without a browser."""

import os
import subprocess
import sys
import time

import pytest

from envs.base import EnvError
from envs.browser.server import chromium
from envs.browser.server.chromium import find_chromium, search_chromium
from envs.browser.server.local import LocalServer
from envs.browser.server.processes import kill_marked, marked


def test_the_library_imports_without_the_browsers_packages():
    code = (
        "import sys, envs, envs.scripted, envs.browser.pool, envs.browser.server.chromium; "
        "print([m for m in ('torch', 'openenv', 'playwright', 'browsergym') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def make_executable(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(0o755)
    return str(path)


def test_chosen_chromium(tmp_path):
    mine = tmp_path / "chrome"
    mine.write_text("")
    environ = {"GRPO_CHROMIUM": str(mine)}
    for search in (find_chromium, search_chromium):
        with pytest.raises(FileNotFoundError, match="GRPO_CHROMIUM must be an executable file"):
            search(environ)
    assert find_chromium({"GRPO_CHROMIUM": make_executable(mine)}) == str(mine)


def test_order_of_the_search(monkeypatch, tmp_path):
    monkeypatch.setattr(chromium, "_DEBIAN", (str(tmp_path / "debian"),))
    cache = tmp_path / "cache"
    environ = {"PATH": str(tmp_path / "bin"), "PLAYWRIGHT_BROWSERS_PATH": str(cache)}
    assert search_chromium(environ) is None
    with pytest.raises(FileNotFoundError, match=r"no Chromium found: .*make setup"):
        find_chromium(environ)
    for path in (  # each is preferred to the ones before it
        cache / "chromium-1117" / "chrome-linux" / "chrome",
        cache / "chromium_headless_shell-999" / "chrome-linux" / "headless_shell",
        cache / "chromium_headless_shell-1187" / "chrome-linux" / "chrome-headless-shell",
        tmp_path / "bin" / "google-chrome",
        tmp_path / "bin" / "chromium",
        tmp_path / "debian",
    ):
        made = make_executable(path)
        assert find_chromium(environ) == search_chromium(environ) == made


def test_the_search_can_be_loaded_by_its_path():
    # As scripts/setup.py does, with a Python that has no packages.
    code = (
        "import runpy, sys; found = runpy.run_path(sys.argv[1]); found['search_chromium'](); "
        "print([m for m in sys.modules if m.partition('.')[0] in ('envs', 'numpy')])"
    )
    command = [sys.executable, "-I", "-S", "-c", code, chromium.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
