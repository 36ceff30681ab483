"""The server's parts that need no browser, and its start."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import envs
from envs.base import EnvError
from envs.browser.server import chromium, command, local
from envs.browser.server.chromium import find_chromium, search_chromium
from envs.browser.server.command import main
from envs.browser.server.local import LocalServer
from envs.browser.server.processes import kill_marked, marked


def test_the_library_can_be_imported_without_the_browser_packages():
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


def test_a_chromium_chosen_by_the_user(tmp_path):
    mine = tmp_path / "chrome"
    mine.write_text("")
    environ = {"GRPO_CHROMIUM": str(mine)}
    for search in (find_chromium, search_chromium):
        with pytest.raises(FileNotFoundError, match="GRPO_CHROMIUM must be an executable file"):
            search(environ)
    assert find_chromium({"GRPO_CHROMIUM": make_executable(mine)}) == str(mine)


def test_order_of_the_search_for_a_chromium(monkeypatch, tmp_path):
    monkeypatch.setattr(chromium, "_DEBIAN", (str(tmp_path / "debian"),))
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / "cache"
    environ = {"PATH": str(tmp_path / "bin"), "PLAYWRIGHT_BROWSERS_PATH": str(cache)}
    apps, new = tmp_path / "Applications", "Google Chrome for Testing"  # of a Mac
    assert search_chromium(environ) is None
    with pytest.raises(FileNotFoundError, match=r"no Chromium found: .*make setup"):
        find_chromium(environ)
    for path in (  # each is preferred to the ones before it
        apps / "Google Chrome.app" / "Contents" / "MacOS" / "Google Chrome",
        cache / "chromium-1187" / "chrome-mac" / "Chromium.app" / "Contents" / "MacOS" / "Chromium",
        cache / "chromium-1224" / "chrome-mac-arm64" / f"{new}.app" / "Contents" / "MacOS" / new,
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
def test_marked_processes_are_killed_even_if_orphaned():
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
    # As with a browser: the mark is gone from the children's environment, the parent still has it.
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "argument --workers: must be greater than 0, got 0"),
        (["--max-sessions", "x"], "argument --max-sessions: invalid int value: 'x'"),
        (["--deadline-s", "inf"], "argument --deadline-s: must be greater than 0, got inf"),
        (["--port", "65536"], "argument --port: must be from 0 to 65535, got 65536"),
        (["--workers", "-3"], "argument --workers: must be greater than 0, got -3"),
        (["--host", ""], "argument --host: must not be empty: 0.0.0.0 is every address"),
        (["--prot", "8000"], "unrecognized arguments: --prot"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_busy_port_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_chromium", lambda: "chrome")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    message = f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize("host", ["999.0.0.1", "a" * 100, "no such host", "\0", "192.0.2.1"])
def test_a_bad_host_is_one_line(monkeypatch, capsys, host):
    monkeypatch.setattr(command, "find_chromium", lambda: "chrome")
    assert main(["--host", host]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: cannot listen on ")
    assert line.count("\n") == 1
    assert line.strip().isprintable()


def test_a_missing_chromium_or_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("GRPO_CHROMIUM", "/nowhere/chrome")
    assert main([]) == 2
    message = "GRPO_CHROMIUM must be an executable file, got '/nowhere/chrome'"
    assert capsys.readouterr().err == f"error: {message}\n"
    monkeypatch.setattr(command, "SERVER", ("uvicorn", "opennev"))
    assert main([]) == 2
    message = f"browser tasks need opennev: {local.INSTALL}"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_help_groups_the_options(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith("usage: grpo serve-env")
    for words in ("address:", "capacity:", "time limits:", "number of Chromiums (default: 2)"):
        assert words in help_text


@pytest.mark.browser
def test_the_server_starts_from_an_installed_package_in_any_folder(tmp_path):
    shutil.copytree(Path(envs.__file__).parent, tmp_path / "site" / "envs")
    (tmp_path / "work" / "envs").mkdir(parents=True)  # not the package
    code = (
        "import os; del os.environ['PYTHONPATH']; "
        "from envs.browser.server.local import LocalServer; "
        "server = LocalServer(workers=1); print(server.start()); server.close()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path / "work",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("http://127.0.0.1:"), done.stderr


@pytest.mark.browser
async def test_the_error_of_a_server_that_cannot_start(monkeypatch):
    monkeypatch.setenv("GRPO_CHROMIUM", "/nowhere/chrome")
    server = LocalServer(workers=1)
    with pytest.raises(EnvError, match="GRPO_CHROMIUM must be an executable file"):
        await server.ensure()
    assert not server.alive
    assert server.processes() == []
    with pytest.raises(EnvError, match="call ensure"):
        _ = server.pid
