"""Sessions of stock BrowserGym in real browsers: its tasks, the user's, and what goes wrong."""

import asyncio
import base64
import os
import re
import signal
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_asyncio

from envs.base import Task, TaskError
from envs.browser.actions import Action
from envs.browser.env import BrowserEnv
from envs.browser.miniwob.files import miniwob_url
from envs.browser.server.browsergym_page import error_text
from envs.browser.server.browsergym_session import MARK, BrowserGymSession
from envs.browser.server.errors import SessionError
from envs.browser.server.local import LocalServer
from envs.browser.server.playwright.page import Page
from envs.browser.server.processes import marked
from envs.browser.server.session import Session
from envs.browser.server.slot import Slot
from tests.support.processes import chromiums

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

PAGE = """
<title>Fruit</title>
<label>Name <input></label>
<select><option>apple</option><option>pear</option></select>
<button onclick="document.title = document.querySelector('input').value + ' ' +
  document.querySelector('select').value">Send</button>
<div style="position: relative"><button>Under</button>
  <div style="position: absolute; inset: 0; background: white"></div></div>
<a href="other.html">Other</a>
<button style="position: absolute; top: 3000px">Far below</button>
"""

TASKS = '''
from pathlib import Path

from browsergym.core.task import AbstractBrowserTask

from envs.browser.browsergym_task import BrowserGymTask

SITE = "{site}"
FAST = {{"slow_mo": 0, "pre_observation_delay": 0.05}}


class Fruit(AbstractBrowserTask):
    """Send a name and a fruit, or answer with the fruit."""

    def __init__(self, seed):
        super().__init__(seed)
        self.slow_mo = 0

    def setup(self, page):
        self.fruit = self.random.choice(["apple", "pear"])
        print("not a response")
        page.goto(SITE + "/fruit.html")
        return f"Send the {{self.fruit}} as Ann.", {{}}

    def validate(self, page, chat_messages):
        last = chat_messages[-1]
        answered = last["role"] == "assistant" and last["message"] == self.fruit
        done = page.title() == "Ann " + self.fruit or answered
        return float(done), done, "", {{}}

    def teardown(self):
        Path("{folder}/ended").write_text(self.fruit)


class Fails(Fruit):
    def validate(self, page, chat_messages):
        raise KeyError("a mistake of the user's")


SendFruit = BrowserGymTask(Fruit, options=FAST)
Short = BrowserGymTask(Fruit, max_turns=2, options=FAST)
Window = BrowserGymTask(Fruit, whole_page=False, options=FAST)
NoSite = BrowserGymTask("openended", start_url="{nobody}", goal="Look.", options=FAST)
Open = BrowserGymTask(
    "browsergym/openended", start_url=SITE + "/fruit.html", goal="Look.", actions=(), options=FAST
)
NoAddress = BrowserGymTask("openended", goal="Look.")
NoGoal = BrowserGymTask("openended", start_url=SITE + "/fruit.html", options=FAST)
WrongOption = BrowserGymTask("openended", options={{"slow": 1}})
'''


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "fruit.html").write_text(PAGE)
    (folder / "other.html").write_text("<title>Other</title><p>Another page</p>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        site = f"http://127.0.0.1:{server.server_port}"
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        tasks = TASKS.format(site=site, folder=folder, nobody=nobody)
        (folder / "tasks.py").write_text(tasks)
        (folder / "site").write_text(site)
        yield folder
        server.shutdown()
        thread.join()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def session(folder):
    session = BrowserGymSession(folder / "tasks.py", deadline_s=60.0)
    yield session
    await session.close()


def id_of(observation, text):
    line = next(line for line in observation["axtree_txt"].splitlines() if text in line)
    return line.strip().partition("]")[0].removeprefix("[")


async def act(session, name, *args):
    return await session.step(Action(name, args))


def processes(session):
    return marked(f"{MARK}={session._mark}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoAddress", "cannot make task 'NoAddress': TypeError: .*start_url"),
        ("NoGoal", "cannot make task 'NoGoal': it has no goal"),
        ("WrongOption", "cannot make task 'WrongOption': TypeError: .*'slow'"),
        ("SendFriut", "unknown task 'SendFriut'"),
        ("webarena.4", "unknown task 'webarena.4': .*install browsergym-webarena"),
        ("browsergym/miniwob.clik-test", r"unknown task .*; close names: miniwob\.click-test,"),
    ],
)
async def test_a_task_that_cannot_be_made_leaves_the_session(session, name, message):
    with pytest.raises(TaskError, match=message):
        await session.reset(name, 0)


async def test_openended_observes_the_page_and_ends_no_episode(session, folder):
    seen = await session.reset("Open", 0, screenshot=True)
    site = (folder / "site").read_text()
    assert (seen["goal"], seen["url"]) == ("Look.", f"{site}/fruit.html")
    assert (seen["reward"], seen["done"], seen["error"]) == (0.0, False, "")
    png = base64.b64decode(seen["screenshot"])
    assert png[16:24] == (1280).to_bytes(4) + (720).to_bytes(4)
    x, y, width, height = seen["metadata"]["boxes"][id_of(seen, "button 'Send'")]
    assert 0 < x < x + width < 1280
    assert 0 < y < y + height < 720
    refused = await act(session, "answer", "apple")
    assert refused["error"] == "answer failed: this task has no such action"
    assert (await act(session, "click", id_of(seen, "link 'Other'")))["done"] is False


async def test_a_task_of_the_users_own_is_solved(session, folder):
    seen = await session.reset("SendFruit", 0)
    fruit = seen["goal"].split()[2]
    assert seen["screenshot"] is None
    await act(session, "fill", id_of(seen, "textbox"), "Ann")
    await act(session, "select_option", id_of(seen, "combobox"), fruit)
    done = await act(session, "click", id_of(seen, "'Send'"))
    assert (done["reward"], done["done"]) == (1.0, True)
    assert (done["metadata"]["success"], done["metadata"]["raw_reward"]) == (True, 1.0)
    with pytest.raises(SessionError, match="no episode is running"):
        await act(session, "noop")


async def test_goto_go_back_and_answer(session, folder):
    site = (folder / "site").read_text()
    seen = await session.reset("SendFruit", 0, final_page=False)
    other = await act(session, "goto", f"{site}/other.html")
    assert "Another page" in other["axtree_txt"]
    assert (await act(session, "go_back"))["url"] == f"{site}/fruit.html"
    refused = await act(session, "goto", "file:///etc/passwd")
    assert refused["error"].startswith("goto failed: expected an address that starts with http")
    assert refused["url"] == f"{site}/fruit.html"
    done = await act(session, "answer", seen["goal"].split()[2])
    assert (done["reward"], done["done"], done["axtree_txt"]) == (1.0, True, "")


async def test_the_models_text_is_never_code(session):
    seen = await session.reset("SendFruit", 0)
    text = "'); page.goto('about:blank') # \\\n\"\"\"\x00 ü"
    filled = await act(session, "fill", id_of(seen, "textbox"), text)
    assert filled["error"] == ""
    assert "page.goto('about:blank')" in filled["axtree_txt"].replace("\\'", "'")
    assert filled["url"] == seen["url"]


async def test_why_an_action_failed(session):
    seen = await session.reset("SendFruit", 0)
    missing = await act(session, "click", "999")
    assert missing["error"] == 'click failed: Could not find element with bid "999"'
    covered = await act(session, "click", id_of(seen, "'Under'"))
    assert covered["error"] == "click failed: another element covers it"
    assert (covered["last_action_error"], covered["reward"], covered["done"]) == (True, 0.0, False)
    wrong = await act(session, "fill", id_of(seen, "'Send'"), "Ann")
    assert wrong["error"].startswith("fill failed: Element is not an <input>")


async def test_an_action_that_only_took_long_is_no_outcome():
    log = "TimeoutError: Locator.click: Timeout 500ms exceeded.\nCall log:\n  - waiting"
    with pytest.raises(ValueError, match="too slow"):
        error_text("click", log)


async def test_a_mistake_in_a_users_task_is_told_with_its_line(folder):
    session = BrowserGymSession(folder / "tasks.py")
    await session.reset("Fails", 0)
    line = TASKS.splitlines().index("""        raise KeyError("a mistake of the user's")""") + 1
    with pytest.raises(TaskError, match=f"task 'Fails' failed: validate, line {line}: KeyError"):
        await act(session, "noop")
    assert processes(session) == []


async def test_a_site_that_does_not_respond_is_not_a_mistake(folder):
    session = BrowserGymSession(folder / "tasks.py")
    with pytest.raises(SessionError, match=r"lost: Error: .*ERR_CONNECTION_REFUSED"):
        await session.reset("NoSite", 0)


async def test_the_last_turn_ends_the_episode(session):
    await session.reset("Short", 0)
    assert (await act(session, "hover", "999"))["done"] is False
    last = await act(session, "hover", "999")
    assert (last["done"], last["reward"], last["metadata"]["success"]) == (True, 0.0, False)


async def test_a_page_in_the_window(session):
    seen = await session.reset("Window", 0)
    assert "Under" in seen["axtree_txt"]
    assert "Far below" not in seen["axtree_txt"]
    assert seen["metadata"]["left_out"] == {"above": 0, "below": 1, "clipped": 0}
    scrolled = await act(session, "scroll", 0, 5000)
    assert "Far below" in scrolled["axtree_txt"]
    assert "Under" not in scrolled["axtree_txt"]


async def test_miniwob_is_as_on_our_own_pages(session):
    slot = Slot()
    try:
        own = Session(Page(await slot.browser(), miniwob_url()))
        await own.page.open()
        for call in (
            lambda one, name: one.reset(name, 1),
            lambda one, _: one.step(Action("click", ("13",))),
        ):
            one = await call(own, "click-test")
            stock = await call(session, "browsergym/miniwob.click-test")
            own_metadata = one["metadata"] | {"deterministic": False}  # nobody has looked there
            del own_metadata["names"]  # nor guessed
            assert stock | {"metadata": stock["metadata"] | own_metadata} == stock
            assert one | {"metadata": stock["metadata"]} == stock
    finally:
        await slot.stop()


async def test_closing_tears_the_task_down_and_leaves_no_process(folder):
    session = BrowserGymSession(folder / "tasks.py")
    goal = (await session.reset("Fruit", 1))["goal"]
    (folder / "ended").unlink(missing_ok=True)
    place = session._folder
    assert len(chromiums(processes(session))) == 2  # the task's, and that of BrowserGym's chat
    await session.close()
    assert (folder / "ended").read_text() in goal
    assert processes(session) == []
    assert not place.exists()
    with pytest.raises(SessionError, match="it was closed"):
        await session.reset("SendFruit", 1)


async def test_through_the_server(folder):
    server = LocalServer(workers=1, max_sessions=2, task_file=str(folder / "tasks.py"))
    async with server:
        env = BrowserEnv(server.url)
        seen = await env.reset(Task("SendFruit", 0))
        assert "goto(" in seen.messages[0]["content"]
        done = await env.step(f"answer({seen.goal.split()[2]!r})")
        assert (done.reward, done.done, done.success) == (1.0, True, True)
        seen = await env.reset(Task("browsergym/miniwob.click-test", 0))
        assert (await env.step(seen.actions[0])).success
        task = Task("browsergym/miniwob.odd-or-even", 0)
        numbers = re.findall(r"text '(-?\d+)'", (seen := await env.reset(task)).page)
        buttons = re.findall(r"button '\w+' \[(\d+)\]", seen.page)  # odd, even, odd, ..., submit
        for i, number in enumerate(numbers[:2]):
            await env.step(f"click('{buttons[2 * i + 1 - int(number) % 2]}')")
        part = await env.step(f"click('{buttons[-1]}')")
        assert (part.reward, part.done, part.success) == (0.0, True, False)
        assert part.info == {"raw_reward": pytest.approx(1 / 3), "success_browsergym": True}
        with pytest.raises(TaskError, match="cannot make task 'NoGoal': it has no goal"):
            await env.reset(Task("NoGoal", 0))
        assert (await env.reset(Task("click-test", 0))).goal == "Click the button."
        await env.close()
    assert server.processes() == []


def node_of(pids):
    return [pid for pid in pids if b"run-driver" in Path(f"/proc/{pid}/cmdline").read_bytes()]


KILLED = {"node": node_of, "Chromium": chromiums}


@pytest.mark.parametrize("victim", KILLED)
async def test_a_killed_process_loses_the_session(folder, victim):
    session = BrowserGymSession(folder / "tasks.py")
    await session.reset("Open", 0)
    for pid in KILLED[victim](processes(session)):
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        with pytest.raises(SessionError, match="the session is lost"):
            await act(session, "noop")
    assert processes(session) == []
    with pytest.raises(SessionError, match="open a new one"):
        await session.reset("Open", 0)


async def test_a_frozen_process_loses_the_session_at_the_deadline(folder):
    session = BrowserGymSession(folder / "tasks.py")
    await session.reset("Open", 0)
    session.deadline_s = 1.0
    os.kill(node_of(processes(session))[0], signal.SIGSTOP)
    with pytest.raises(SessionError, match="lost: no response within 1 s"):
        await act(session, "noop")
    assert processes(session) == []


async def test_a_cancelled_call_leaves_no_process(folder):
    session = BrowserGymSession(folder / "tasks.py")
    call = asyncio.create_task(session.reset("Open", 0))
    async with asyncio.timeout(30):
        while not chromiums(processes(session)):
            await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert processes(session) == []
