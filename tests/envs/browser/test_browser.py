"""BrowserEnv against the real server and a real Chromium."""

import asyncio
import io
import os
import re
import signal
from dataclasses import replace

import pytest

from envs.base import EnvError, Task, TaskError
from envs.browser.env import BrowserEnv
from envs.checker import check_env
from envs.pool import EnvPool

pytestmark = pytest.mark.browser

CLICK = Task("click-test", 0)


def ids(page, role="button"):
    return re.findall(rf"^{role}\b.* \[(\w+)\]", page, re.MULTILINE)


def id_of(page, line_start):
    (found,) = re.findall(rf"^{re.escape(line_start)} \[(\w+)\]", page, re.MULTILINE)
    return found


@pytest.fixture
async def env(server):
    env = BrowserEnv(server.url)
    yield env
    await env.close()


async def test_click_test_is_solved_by_reading_the_page(env):
    observation = await env.reset(CLICK)
    (button,) = ids(observation.page)
    assert observation.goal == "Click the button."
    assert observation.actions == (f"click('{button}')",)
    assert observation.page in observation.messages[-1]["content"]
    result = await env.step(f"click('{button}')")
    assert (result.reward, result.done, result.success) == (1.0, True, True)
    assert result.valid_action
    assert result.info == {"raw_reward": 1.0, "success_browsergym": True}


async def test_the_solver_is_asked_for_each_step(env):
    assert env.demonstrate() == ""
    await env.reset(Task("login-user", 2))
    done = []
    while action := env.demonstrate():
        assert env.demonstrate() == action
        done.append((action, await env.step(action)))
    assert [result.success for _, result in done] == [False, False, True]
    await env.reset(Task("hot-cold", 0))  # has no solver
    assert env.demonstrate() == ""


async def test_another_variant_is_the_same_page_with_other_ids(env):
    task, done = Task("login-user", 2), []
    page = (await env.reset(task)).page
    while action := env.demonstrate():
        assert env.renumbered(action) == action
        done.append((action, await env.step(action)))
    for variant in (1, 2):
        observation = await env.reset(replace(task, variant=variant))
        assert observation.page != page
        assert re.sub(r"\[\w+\]", "", observation.page) == re.sub(r"\[\w+\]", "", page)
        said = []
        for action, first in done:
            said.append(env.renumbered(action))
            result = await env.step(said[-1])
            assert (result.success, result.reward) == (first.success, first.reward)
        assert said != [action for action, _ in done]
        assert result.success
    await env.reset(replace(task, variant=1))
    for text in ("click('1')", "no action"):
        assert env.renumbered(text) == text


async def test_wrong_button_ends_the_episode_without_success(env):
    observation = await env.reset(Task("click-test-2", 1))
    wrong = id_of(observation.page, "button 'TWO'")
    result = await env.step(f"click('{wrong}')")
    assert (result.reward, result.done, result.success) == (0.0, True, False)
    assert result.info == {"raw_reward": -1.0, "success_browsergym": False}


async def test_several_actions_in_one_episode(env):
    observation = await env.reset(Task("login-user", 2))
    name, password = re.findall(r'"([^"]+)"', observation.goal)
    fields = ids(observation.page, "textbox")
    result = await env.step(f"fill('{fields[0]}', {name!r})")
    assert not result.done
    assert f"value={name!r}" in result.observation.page
    assert result.observation.messages[-1]["content"].count(f"fill('{fields[0]}'") == 1
    await env.step(f"fill('{fields[1]}', {password!r})")
    result = await env.step(f"click('{ids(observation.page)[0]}')")
    assert result.success


async def test_autocomplete_menu_is_there_after_fill(env):
    observation = await env.reset(Task("use-autocomplete", 0))
    (field,) = ids(observation.page, "textbox")
    start = re.search(r'starts with "(\w+)"', observation.goal)[1]
    result = await env.step(f"fill('{field}', {start!r})")
    entries = set(re.findall(rf"'({start}\w+)'", result.observation.page))
    assert entries, result.observation.page


@pytest.mark.parametrize("text", ["Sure! click('13')", "click(13)", "", "click('1')\nclick('2')"])
async def test_text_that_is_not_an_action(env, text):
    before = await env.reset(CLICK)
    result = await env.step(text)
    assert not result.valid_action
    assert (result.reward, result.done) == (0.0, False)
    assert result.observation.page == before.page
    assert result.observation.error in result.observation.messages[-1]["content"]


async def test_id_that_is_not_on_the_page(env):
    before = await env.reset(CLICK)
    (button,) = ids(before.page)
    wrong = "57" if button != "57" else "58"
    result = await env.step(f"click('{wrong}')")
    assert not result.valid_action
    assert result.observation.error == f"there is no element '{wrong}' on the page"
    assert result.observation.page == before.page
    assert (await env.step(f"click('{button}')")).success


async def test_an_element_that_cannot_be_clicked_is_an_action_error(env):
    observation = await env.reset(Task("choose-list", 0))
    option = ids(observation.page, "option")[-1]
    result = await env.step(f"click('{option}')")
    assert result.valid_action
    assert result.observation.error == "click failed: the element is not visible"
    select = ids(observation.page, "combobox")[0]
    result = await env.step(f"select_option('{select}', 'Atlantis')")
    assert result.observation.error == "select_option failed: there is no such option"


async def test_acted_on_holds_the_elements_boxes(env):
    from PIL import Image

    observation = await env.reset(CLICK, screenshot=True)
    image = Image.open(io.BytesIO(observation.screenshot)).convert("RGB")
    for refused in ("click(1)", "click('x')", "noop()"):
        assert (await env.step(refused)).acted_on == ()
    ((x, y, width, height),) = (await env.step(observation.actions[0])).acted_on
    button, middle = (239, 239, 239), y + height / 2
    columns = [x + 3, x + width - 4], [x - 2, x + width + 1]
    inside, outside = ([image.getpixel((at, middle)) for at in each] for each in columns)
    assert inside == [button] * 2
    assert outside == [(255, 255, 255)] * 2

    observation = await env.reset(Task("drag-box", 1), screenshot=True)
    small, large = (id_of(observation.page, f"text {name!r}") for name in "sL")
    boxes = (await env.step(f"drag_and_drop({small!r}, {large!r})")).acted_on
    assert [box[2:] for box in boxes] == [(28, 28), (58, 58)]

    observation = await env.reset(Task("click-color", 0), screenshot=True)
    box, point = re.search(r"box \[(\d+)\] at (\d+,\d+)", observation.page).groups()
    expected = env.boxes[box]
    assert (await env.step(f"click_at({point})")).acted_on == (expected,)

    observation = await env.reset(Task("choose-list", 0), screenshot=True)
    result = await env.step(f"select_option({ids(observation.page, 'combobox')[0]!r}, 'Atlantis')")
    assert result.observation.error
    assert result.acted_on == ()
    observation = await env.reset(CLICK)
    assert (await env.step(observation.actions[0])).acted_on == ()


async def test_concurrent_sessions_do_not_interfere(server):
    async def play(seed):
        env = BrowserEnv(server.url)
        try:
            observation = await env.reset(Task("click-button", seed))
            name = re.search(r'"(.+)"', observation.goal)[1]
            button = id_of(observation.page, f"button {name!r}")
            result = await env.step(f"click('{button}')")
            return result.success, observation.page
        finally:
            await env.close()

    results = await asyncio.gather(*(play(seed) for seed in range(8)))
    assert [success for success, _ in results] == [True] * 8
    assert len({page for _, page in results}) == 8


async def test_seeds(server, env):
    other = BrowserEnv(server.url)
    try:
        first = await env.reset(Task("click-button", 5))
        await env.step(first.actions[0])
        assert await other.reset(Task("click-button", 5)) == first
        assert await env.reset(Task("click-button", 5)) == first
        assert (await env.reset(Task("click-button", 6))).page != first.page
        seen = {(await env.reset(Task("click-test", seed))).actions for seed in range(4)}
        assert len(seen) == 4
    finally:
        await other.close()


async def test_an_unknown_task_names_close_ones_and_keeps_the_session(env):
    with pytest.raises(TaskError, match=r"unknown task 'clik-test'.*click-test"):
        await env.reset(Task("clik-test", 0))
    assert (await env.reset(Task("miniwob.click-test", 0))).goal == "Click the button."


async def test_step_after_the_end_is_refused(env):
    with pytest.raises(RuntimeError, match="call reset first"):
        await env.step("noop()")
    observation = await env.reset(CLICK)
    await env.step(observation.actions[0])
    with pytest.raises(RuntimeError, match="call reset first"):
        await env.step(observation.actions[0])
    await env.reset(CLICK)


async def test_screenshots_only_if_asked_for(env):
    assert (await env.reset(CLICK)).screenshot is None
    image = (await env.reset(CLICK, screenshot=True)).screenshot
    assert image is not None
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(image[16:20]), int.from_bytes(image[20:24])) == (332, 214)
    assert (await env.step("noop()")).observation.screenshot is not None
    assert (await env.reset(CLICK)).screenshot is None


async def test_hidden_page(server):
    env = BrowserEnv(server.url)
    try:
        observation = await env.reset(CLICK)
    finally:
        await env.close()
    blind = observation.hide()
    assert blind.page == "(hidden)"
    assert "Click Me!" in observation.messages[-1]["content"]
    assert "Click Me!" not in str(blind.messages)
    assert blind.messages[-1]["content"] == f"Goal: {observation.goal}\nPage:\n(hidden)"
    assert blind.messages[:-1] == observation.messages[:-1]


async def test_contract(server):
    observation = await (first := BrowserEnv(server.url)).reset(CLICK)
    await first.close()
    await check_env(lambda: BrowserEnv(server.url), CLICK, good_actions=[observation.actions[0]])


async def test_more_sessions_than_the_server_allows(server):
    envs = [BrowserEnv(server.url) for _ in range(server.max_sessions + 1)]
    try:
        replies = await asyncio.gather(*(env.reset(CLICK) for env in envs), return_exceptions=True)
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        assert len(refused) == 1
        assert isinstance(refused[0], EnvError)
        assert "CAPACITY_REACHED" in str(refused[0])
    finally:
        await asyncio.gather(*(env.close() for env in envs))


async def test_a_browser_that_dies_loses_only_its_sessions(server, browsers):
    pool = EnvPool(lambda: BrowserEnv(server.url), size=2)
    with pytest.raises(EnvError, match="session is lost"):  # noqa: PT012
        async with pool.lease() as env:
            await env.reset(CLICK)
            for pid in browsers(server):
                os.kill(pid, signal.SIGKILL)
            await env.step("noop()")
    assert pool.discarded == 1
    with pytest.raises(EnvError, match="dead"):
        await env.reset(CLICK)
    async with pool.lease() as env, pool.lease() as other:  # one on each worker
        for one in (env, other):
            observation = await one.reset(CLICK)
            assert (await one.step(observation.actions[0])).success
    assert pool.created == 3
    await pool.close()


async def test_a_browser_that_hangs_hits_the_deadline(server, browsers):
    env = BrowserEnv(server.url, deadline_s=1.0)
    await env.reset(CLICK)
    stopped = browsers(server)
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EnvError, match="no response within 1 s"):
            await env.step("noop()")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await env.close()


async def test_a_server_that_dies_is_replaced(server):
    env = BrowserEnv(server.url)
    await env.reset(CLICK)
    old = server.processes()
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(EnvError):
        await env.step("noop()")
    await env.close()
    urls = await asyncio.gather(*(server.ensure() for _ in range(3)))
    assert len(set(urls)) == 1
    assert not set(old) & set(server.processes())
    env = BrowserEnv(server.url)
    observation = await env.reset(CLICK)
    assert (await env.step(observation.actions[0])).success
    await env.close()


@pytest.mark.parametrize("port", ["closed", "hangs up"])
async def test_a_server_that_does_not_respond_is_replaced(server, port):
    # As for a moment after a kill: the process still exists, perhaps the port too.
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    number = 9 if port == "closed" else listener.sockets[0].getsockname()[1]
    old, server.url = server.pid, f"http://127.0.0.1:{number}"
    assert server.alive
    await server.ensure()
    listener.close()
    assert server.pid != old
    env = BrowserEnv(server.url)
    await env.reset(CLICK)
    await env.close()


async def test_no_server():
    env = BrowserEnv("http://127.0.0.1:9")
    with pytest.raises(EnvError, match="ConnectionError"):
        await env.reset(CLICK)
    await env.close()
    await env.close()


# Last, because it stops the server.
async def test_close_leaves_no_process(server, browsers):
    env = BrowserEnv(server.url)
    await env.reset(CLICK)
    assert len(browsers(server)) == 2
    folder = server._folder
    server.close()
    assert server.processes() == []
    assert not folder.exists()
    assert not server.alive
    await env.close()
