"""One session in a real browser, also on pages that misbehave as MiniWoB's do not."""

import asyncio
import json
import os
import re
import shutil
import signal

import pytest
import pytest_asyncio

from envs.browser.actions import ACTIONS, POINT_ACTIONS, parse_action
from envs.browser.miniwob.files import miniwob_url
from envs.browser.server import chromium_pool, pooled_session
from envs.browser.server import slot as slots
from envs.browser.server.chromium_pool import ChromiumPool
from envs.browser.server.errors import BrowserError, BrowserGone, SessionError
from envs.browser.server.playwright import actions
from envs.browser.server.playwright.browser import PlaywrightChromium
from envs.browser.server.playwright.page import Page
from envs.browser.server.processes import marked
from envs.browser.server.session import Session
from envs.browser.server.slot import Slot
from tests.support.processes import chromiums

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

CLICK = "click('13')"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared():
    slot = Slot()
    yield slot
    await slot.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def browser(shared):
    return await shared.browser()  # a new one if a test killed the last one


@pytest_asyncio.fixture(loop_scope="module")
async def session(browser, monkeypatch):
    monkeypatch.setattr(actions, "TIMEOUT_MS", 1000)  # what cannot be done is refused sooner
    session = Session(Page(browser, miniwob_url()))
    await session.page.open()
    await session.reset("click-test", 0)
    yield session
    if browser.alive:
        await session.page.close()


async def act(session, text):
    return await session.step(parse_action(text))


async def html(session, body):
    """Start an episode and replace its page's content by elements with these ids."""
    await session.reset("click-test", 0)
    await js(session, f"document.querySelector('#area').innerHTML = `{body}`; 0")


async def js(session, script):
    """Run a script in the page and return its value."""
    return await session.page.run(f"(0, eval)({json.dumps(script)})")


@pytest.mark.parametrize("delay", [0.0, 0.5])  # of the new page: until then the old one responds
async def test_navigating_away_ends_the_episode_but_not_the_session(session, monkeypatch, delay):
    admit = session.page._admit

    async def later(*request):
        await asyncio.sleep(delay)
        await admit(*request)

    monkeypatch.setattr(session.page, "_admit", later)
    await js(
        session,
        "document.querySelector('button').addEventListener('click', "
        "event => { event.stopImmediatePropagation(); "
        "setTimeout(() => location.search = '?left', 15); }, true)",
    )
    result = await act(session, CLICK)
    assert (result["done"], result["reward"]) == (True, 0.0)
    assert result["url"].endswith("?left")
    await session.reset("click-test", 0)
    assert (await act(session, CLICK))["reward"] == 1.0


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://127.0.0.1:9/", "about:blank"])
async def test_only_the_tasks_pages_can_be_opened(session, url):
    await js(session, f"document.querySelector('button').onclick = () => {{ location = '{url}' }}")
    result = await act(session, CLICK)
    assert (result["done"], result["reward"]) == (True, 0.0)
    assert "root:" not in result["axtree_txt"]
    with pytest.raises(BrowserError, match="cannot open"):
        await session.page.goto("file:///etc/passwd")
    assert (await session.reset("click-test", 0))["goal"] == "Click the button."


async def test_a_slow_page_is_waited_for(session):
    await js(
        session,
        "setInterval(() => { const end = Date.now() + 400; while (Date.now() < end); }, 0); 0",
    )
    async with asyncio.timeout(60):
        assert (await act(session, CLICK))["reward"] == 1.0


async def test_a_hanging_page_hits_the_deadline_and_the_other_pages_go_on(browser):
    pool = ChromiumPool(1, deadline_s=4.0, idle_s=60.0)
    pool.slots[0]._chromium = browser
    hung, other = pool.open(), pool.open()
    for session in (hung, other):
        await session.call("reset", "click-test", 0)
    running = asyncio.create_task(js(hung._session, "for (;;) {}"))
    with pytest.raises(SessionError, match="lost: no response within 4 s"):
        await hung.call("step", parse_action(CLICK))
    with pytest.raises(SessionError, match="open a new one"):
        await hung.call("reset", "click-test", 0)
    assert (await other.call("step", parse_action(CLICK)))["reward"] == 1.0
    assert pool.slots[0].sessions == {other}
    running.cancel()


async def test_actions_on_points(session):
    (circle,) = (await session.reset("drag-circle", 0))["metadata"]["drawings"]
    x, y, width, height = circle["box"]
    middle = f"{x + width / 2}, {y + height / 2}"

    async def step(text):
        seen = await session.step(parse_action(text, POINT_ACTIONS))
        return seen["error"], [each["box"] for each in seen["metadata"].get("drawings", ())]

    outside = "the window has 332 x 214 pixels"
    assert await step(f"click_at({middle})") == ("", [[x, y, width, height]])
    assert await step("click_at(332, 0)") == (f"click_at failed: {outside}", [circle["box"]])
    assert (await step("drag(0, 0, 0, 214)"))[0] == f"drag failed: {outside}"
    # MiniWoB puts a tenth of the circle's width before the pointer, whatever it was dragged by.
    error, ((moved, *_),) = await step(f"drag({middle}, {x + width / 2 + 30}, {y})")
    assert not error
    assert moved == pytest.approx(x + 30 - 0.1 * width, abs=3)
    assert "drawings" not in (await session.reset("click-test", 0))["metadata"]
    assert await step("click_at(20, 70)") == (
        *("click_at failed: this page has no action click_at", []),
    )


async def test_idle_sessions_are_closed(browser):
    pool = ChromiumPool(1, deadline_s=30.0, idle_s=0.4)
    pool.slots[0]._chromium = browser
    await pool.start()
    session = pool.open()
    await session.call("reset", "click-test", 0)
    async with asyncio.timeout(20):
        while pool.slots[0].sessions:
            await asyncio.sleep(0.05)
    with pytest.raises(SessionError, match=r"unused for 0\.4 s"):
        await session.call("step", parse_action(CLICK))
    pool.slots[0]._chromium = None
    await pool.stop()


def processes(browser):
    """Return the processes of a browser, with those of Playwright."""
    return marked(f"GRPO_BROWSER={browser._mark}")


def culprit(browser, name):
    """Return the id of a browser's main process, or of the node process that controls it."""
    (found,) = [browser._node] if name == "node" else chromiums(processes(browser))
    return found


PROCESSES = ["chromium", "node"]
"""Those without which a session ends."""


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(monkeypatch):
    """A pool with a session, whose browser is checked often."""
    monkeypatch.setattr(chromium_pool, "WATCH_INTERVAL_S", 0.2)
    monkeypatch.setattr(slots, "HEARTBEAT_S", 3.0)
    monkeypatch.setattr(pooled_session, "CLOSE_DEADLINE_S", 1.0)
    pool = ChromiumPool(1, deadline_s=60.0, idle_s=60.0)
    await pool.start()
    session = pool.open()
    await session.call("reset", "click-test", 0)
    yield pool, session
    async with asyncio.timeout(20):
        await pool.stop()


async def recovers(pool, broken):
    """Wait until nothing is left of a broken browser, and return True if another one plays."""
    async with asyncio.timeout(20):
        while processes(broken) or pool.slots[0]._chromium in (None, broken):
            await asyncio.sleep(0.05)
        other = pool.open()
        first = await other.call("reset", "click-test", 0)
        return first["goal"] == "Click the button."


@pytest.mark.parametrize("process", PROCESSES)
async def test_a_frozen_process_is_noticed_by_the_heartbeat(faulty, process):
    pool, session = faulty
    broken = pool.slots[0]._chromium
    os.kill(culprit(broken, process), signal.SIGSTOP)
    with pytest.raises(SessionError, match="lost: the browser is gone"):
        async with asyncio.timeout(30):
            await session.call("step", parse_action(CLICK))
    assert await recovers(pool, broken)


@pytest.mark.parametrize("process", PROCESSES)
async def test_a_killed_process_is_noticed_at_once_by_a_pending_call(faulty, process, monkeypatch):
    pool, session = faulty
    monkeypatch.setattr(chromium_pool, "WATCH_INTERVAL_S", 1000.0)
    broken = pool.slots[0]._chromium
    call = asyncio.create_task(js(session._session, "new Promise(() => {})"))
    await js(session._session, "0")  # the call before it has arrived
    await asyncio.sleep(0.3)  # the last check with the old interval is over
    os.kill(culprit(broken, process), signal.SIGKILL)
    with pytest.raises(BrowserGone):
        async with asyncio.timeout(10):
            await call
    with pytest.raises(SessionError, match="lost: the browser is gone"):
        await session.call("step", parse_action(CLICK))


@pytest.mark.parametrize("process", PROCESSES)
async def test_a_killed_process_is_noticed_without_a_call(faulty, process):
    pool, session = faulty
    broken = pool.slots[0]._chromium
    os.kill(culprit(broken, process), signal.SIGKILL)
    assert await recovers(pool, broken)
    with pytest.raises(SessionError, match="lost: the browser is gone"):
        await session.call("step", parse_action(CLICK))


@pytest.mark.parametrize("process", PROCESSES)
async def test_a_pool_with_a_frozen_process_stops(faulty, process):
    pool, _ = faulty
    broken = pool.slots[0]._chromium
    os.kill(culprit(broken, process), signal.SIGSTOP)
    async with asyncio.timeout(20):
        await pool.stop()
    assert processes(broken) == []


async def test_a_page_that_crashes_fails_at_once(session, browser):
    call = asyncio.create_task(js(session, "new Promise(() => {})"))
    await js(session, "0")  # the call before it has arrived
    for pid in chromiums(processes(browser), pages=True):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(BrowserError, match="the page crashed"):
        async with asyncio.timeout(20):
            await call


async def test_a_browser_that_dies_fails_at_once(session, browser):
    os.kill(culprit(browser, "chromium"), signal.SIGKILL)
    with pytest.raises(BrowserGone):
        async with asyncio.timeout(20):
            await act(session, CLICK)
    assert not browser.alive
    with pytest.raises(BrowserGone):
        await js(session, "1")


async def test_a_browser_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setenv("GRPO_CHROMIUM", shutil.which("cat"))
    browser = PlaywrightChromium()
    with pytest.raises(BrowserGone, match=r"cat exited at its start; its last output:\n.*cat: unr"):
        await browser.start()
    assert not browser.alive
    assert processes(browser) == []
    with pytest.raises(BrowserGone):
        await browser.ping()


async def test_clicking_a_covered_element_is_an_action_error(session):
    await js(
        session,
        "const cover = document.createElement('div');"
        "cover.style = 'position: fixed; inset: 0; z-index: 9999';"
        "document.body.append(cover)",
    )
    result = await act(session, CLICK)
    assert result["error"] == "click failed: another element covers it"
    assert result["last_action_error"]


REFUSALS = {
    "<p bid=91 style='display: none'>a</p>": "the element is not visible",
    "<p bid=91 style='visibility: hidden'>a</p>": "the element is not visible",
    "<button bid=91 disabled>a</button>": "the element is not enabled",
    "<fieldset disabled><button bid=91>a</button></fieldset>": "the element is not enabled",
    "<button bid=91 style='position: fixed; left: -500px'>a</button>": "the element is outside "
    "the window",
    "<p bid=92>a</p>": "there is no element 91",
}


@pytest.mark.parametrize("body", REFUSALS)
async def test_elements_that_cannot_be_clicked(session, body):
    await html(session, body)
    assert (await act(session, "click('91')"))["error"] == f"click failed: {REFUSALS[body]}"


async def test_clicking_a_moving_element_is_an_action_error(session):
    await html(session, "<button bid=91 style='position: absolute'>a</button>")
    await js(
        session,
        "let n = 0; const move = () => { document.querySelector(`[bid='91']`).style.left = "
        "`${n++ % 50}px`; requestAnimationFrame(move) }; move()",
    )
    assert (await act(session, "click('91')"))["error"] == "click failed: the element keeps moving"


async def test_an_element_that_appears_late_is_waited_for(session):
    await html(session, "<button bid=91 hidden onclick='core.endEpisode(1)'>a</button>")
    await js(
        session, "setTimeout(() => document.querySelector(`[bid='91']`).hidden = false, 200); 0"
    )
    assert (await act(session, "click('91')"))["reward"] == 1.0


async def test_an_element_out_of_view_is_scrolled_to(session):
    await html(
        session,
        "<div style='height: 90px; overflow: scroll'><div style='height: 900px'></div>"
        "<button bid=91 onclick='core.endEpisode(1)'>a</button></div>",
    )
    assert (await act(session, "click('91')"))["reward"] == 1.0


@pytest.mark.parametrize(
    "animate",
    [
        "jQuery('#area').animate({width: 90}, 400, 'swing', ready)",
        "document.querySelector('#area').animate([{opacity: 0}, {}], 400).onfinish = ready",
        "setTimeout(() => setTimeout(ready, 150), 250)",
    ],
)
async def test_the_effects_of_an_action_are_awaited(session, animate):
    await session.reset("click-collapsible", 0)
    await js(session, f"const ready = () => jQuery('#area').append('<p>ready</p>'); {animate}; 0")
    assert "'ready'" in (await act(session, "noop()"))["axtree_txt"]


async def test_a_page_is_still_after_its_episode(session):
    async def grows():
        """Tell whether the page gets another of the circles that it adds every 100 ms."""
        count = "document.querySelectorAll('circle').length"
        before = await session.page.run(count)
        await asyncio.sleep(0.5)
        return await session.page.run(count) > before

    for _ in range(2):
        first = await session.reset("stock-market", 0)
        assert await grows()
        buy = re.search(r"\[(\d+)\] button 'Buy'", first["axtree_txt"])[1]
        assert (await act(session, f"click('{buy}')"))["done"]
        assert not await grows()


async def test_a_page_that_never_settles_is_read_anyway(session):
    await js(session, "const tick = () => setTimeout(tick, 5); tick()")
    async with asyncio.timeout(10):
        assert "button" in (await act(session, "noop()"))["axtree_txt"]


async def test_a_page_that_asks_to_be_left_alone_is_left(session):
    """Chromium asks only after a user's gesture, and the navigation waits for the answer."""
    await js(
        session,
        "addEventListener('beforeunload', event => { event.preventDefault(); "
        "event.returnValue = 'stay' }); "
        "document.querySelector('button').onclick = () => {}; 0",
    )
    await act(session, CLICK)
    async with asyncio.timeout(20):
        assert (await session.reset("click-test", 0))["goal"] == "Click the button."
    assert (await act(session, CLICK))["reward"] == 1.0


async def test_a_dialog_is_dismissed(session):
    await js(session, "document.querySelector('button').onclick = () => { answer = confirm('?') }")
    async with asyncio.timeout(20):
        await act(session, CLICK)
        assert await js(session, "answer") is False


FIELDS = {
    "<input bid=91 value=old>": "new",
    "<textarea bid=91>old</textarea>": "new",
    "<input bid=91 type=password value=old>": "new",
    "<input bid=91 type=number value=1>": "27",
    "<input bid=91 type=date>": "2020-02-29",
    "<input bid=91 type=range max=10>": "7",
    "<input bid=91 value=old> ": "Zoë, 東京",
    "<input bid=91 value=old>  ": "",
    "<label bid=91>name <input value=old></label>": "new",
}


@pytest.mark.parametrize("body", FIELDS)
async def test_fill(session, body):
    await html(session, body)
    await js(session, "seen = 0; addEventListener('input', () => seen++)")
    text = FIELDS[body]
    assert (await act(session, f"fill('91', {text!r})"))["error"] == ""
    assert await js(session, "document.querySelector('input, textarea').value") == text
    assert await js(session, "seen") == 1


async def test_clear(session):
    await html(session, "<input bid=91 value=old>")
    await act(session, "clear('91')")
    assert await js(session, "document.querySelector('input').value") == ""


async def test_fill_contenteditable(session):
    await html(session, "<div bid=91 contenteditable>old</div>")
    assert (await act(session, "fill('91', 'new')"))["error"] == ""
    assert await js(session, "document.querySelector(`[bid='91']`).textContent") == "new"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<p bid=91>a</p>", "the element is not a text field"),
        ("<input bid=91 readonly>", "the element is not editable"),
        ("<input bid=91 type=checkbox>", "an input of type checkbox cannot be filled"),
        ("<input bid=91 type=number>", "the field takes numbers only"),
        ("<input bid=91 type=date>", "not a value of a date field"),
    ],
)
async def test_elements_that_cannot_be_filled(session, body, reason):
    await html(session, body)
    assert (await act(session, "fill('91', 'new')"))["error"] == f"fill failed: {reason}"


async def test_select_option(session):
    await html(session, "<select bid=91><option value=1>one<option value=2>two<option disabled>no")
    for text in ("2", "one"):
        assert (await act(session, f"select_option('91', {text!r})"))["error"] == ""
        wanted = {"one": "1"}.get(text, text)
        assert await js(session, "document.querySelector('select').value") == wanted
    errors = [(await act(session, f"select_option('91', {t!r})"))["error"] for t in ("no", "Oslo")]
    assert errors == [
        "select_option failed: the option is not enabled",
        "select_option failed: there is no such option",
    ]


async def test_check(session):
    await html(session, "<input bid=91 type=checkbox><p bid=92>a</p>")
    for text, state in [("check", True), ("check", True), ("uncheck", False), ("uncheck", False)]:
        assert (await act(session, f"{text}('91')"))["error"] == ""
        assert await js(session, "document.querySelector(`[bid='91']`).checked") is state
    error = (await act(session, "check('92')"))["error"]
    assert error == "check failed: the element is neither a checkbox nor a radio button"


async def test_press(session):
    await html(session, "<input bid=91 value=abc>")
    await js(session, "keys = []; addEventListener('keydown', e => keys.push([e.key, e.keyCode]))")
    for combination in ("End", "Shift+d", "Backspace", "!", "Control+a", "Enter"):
        assert (await act(session, f"press('91', {combination!r})"))["error"] == ""
    assert await js(session, "document.querySelector('input').value") == "abc!"
    assert await js(session, "keys") == [
        ["End", 35], ["Shift", 16], ["d", 68], ["Backspace", 8], ["!", 49],
        ["Control", 17], ["a", 65], ["Enter", 13],
    ]  # fmt: skip
    error = (await act(session, "press('91', 'Banana')"))["error"]
    assert error == "press failed: unknown key 'Banana'"


async def test_pointer_events(session):
    await html(session, "<button bid=91>a</button><button bid=92>b</button>")
    await js(
        session,
        "seen = []; for (const kind of ['mouseover', 'mousedown', 'mouseup', 'click', 'dblclick'])"
        "addEventListener(kind, e => seen.push(kind + ' ' + e.target.textContent + e.buttons))",
    )
    await act(session, "hover('91')")
    await act(session, "dblclick('92')")
    await act(session, "drag_and_drop('91', '92')")
    assert await js(session, "seen") == [
        "mouseover a0", "mouseover b0",
        "mousedown b1", "mouseup b0", "click b0", "mousedown b1", "mouseup b0", "click b0",
        "dblclick b0",
        "mouseover a0", "mousedown a1", "mouseover b1", "mouseup b0",
        "click ab0",  # on their common parent
    ]  # fmt: skip


EFFECTS = {
    "noop()": "seen.join() === ''",
    "focus('93')": "document.activeElement === field",
    "press('93', 'End')": "seen.includes('keydown field')",
    "clear('93')": "field.value === ''",
    "fill('93', 'new')": "field.value === 'new'",
    "check('94')": "box.checked",
    "uncheck('94')": "!box.checked",
    "select_option('95', 'b')": "choice.value === 'b'",
    "click('96')": "seen.includes('click one')",
    "dblclick('96')": "seen.includes('dblclick one')",
    "hover('97')": "two.matches(':hover')",
    "drag_and_drop('96', '97')": "seen.includes('mouseup two')",
    "scroll(0, 150)": "scrollY === 100",
}


async def test_the_effect_of_every_action(session):
    assert {parse_action(text).name for text in EFFECTS} == set(ACTIONS)
    await html(
        session,
        "<input bid=93 id=field value=old><input bid=94 id=box type=checkbox>"
        "<select bid=95 id=choice><option>a<option>b</select>"
        "<button bid=96 id=one>1</button><button bid=97 id=two>2</button>"
        "<div style='height: 3000px'></div>",
    )
    await js(
        session,
        "seen = []; for (const kind of ['keydown', 'click', 'dblclick', 'mouseup'])"
        "addEventListener(kind, e => seen.push(kind + ' ' + e.target.id))",
    )
    for text, effect in EFFECTS.items():
        before = await js(session, effect)
        assert (await act(session, text))["error"] == ""
        assert (text, before, await js(session, effect)) == (text, text == "noop()", True)


async def test_an_element_that_moves_away_from_the_pointer(session):
    await html(
        session,
        "<p id=space hidden style='height: 40px'></p>"
        "<div onmouseover='space.hidden = false'><button id=other bid=92>a</button><br>"
        "<button bid=91 onclick='core.endEpisode(1)'>b</button></div>",
    )
    await js(session, "seen = 0; other.onmousedown = () => seen++; 0")
    result = await act(session, "click('91')")
    assert (result["error"], result["reward"], await js(session, "seen")) == ("", 1.0, 0)
    await html(session, "<div bid=91>a</div>")
    await js(session, "document.querySelector(`[bid='91']`).onmouseover = e => e.target.remove()")
    assert (await act(session, "click('91')"))["error"] == "click failed: there is no element 91"


async def test_boxes_are_the_visible_parts(session):
    place = "style='position: fixed; width: 50px; height: 20px; box-sizing: border-box; "
    scrolled = "<div style='position: fixed; left: 20px; top: 90px; width: 90px; height: 30px; "
    await html(
        session,
        f"<button bid=81 {place}left: 20px; top: 60px'>a</button>"
        f"<button bid=82 {place}left: 300px; top: 60px'>half outside</button>"
        f"<button bid=83 {place}left: 400px; top: 60px'>outside</button>"
        f"<button bid=84 {place}visibility: hidden'>unseen</button>"
        "<button bid=85 style='display: none'>gone</button>"
        f"{scrolled}overflow: hidden'><div style='height: 20px'></div>"
        "<p bid=86 style='margin: 0; height: 40px'>a quarter</p><p bid=87>nothing</p></div>",
    )
    assert "boxes" not in (await act(session, "noop()"))["metadata"]  # they take time
    session._screenshot = True
    boxes = (await act(session, "noop()"))["metadata"]["boxes"]
    assert {bid: box for bid, box in boxes.items() if int(bid) > 80} == {
        "81": [20, 60, 50, 20],
        "82": [300, 60, 32, 20],
        "86": [20, 110, 90, 10],
    }


async def test_the_dragged_element_may_cover_its_target(session):
    await session.reset("drag-box", 0)
    result = await act(session, "drag_and_drop('17', '18')")
    assert result["error"] == ""


async def test_an_element_may_be_dragged_onto_itself(session):
    await session.reset("drag-box", 0)
    result = await act(session, "drag_and_drop('17', '17')")
    assert (result["error"], result["done"]) == ("", False)


async def test_scroll_is_in_pixels_of_browsergyms_screenshot(session):
    await html(session, "<div style='height: 3000px'></div>")
    await act(session, "scroll(0, 150)")
    assert await js(session, "scrollY") == 100


async def test_step_after_the_end_is_refused(session):
    assert (await act(session, CLICK))["reward"] == 1.0
    with pytest.raises(SessionError, match="reset first"):
        await act(session, CLICK)


async def test_the_finished_page_is_sent_only_if_wanted(session):
    assert "button" in (await act(session, CLICK))["axtree_txt"]
    first = await session.reset("click-test", 0, final_page=False)
    assert "button" in first["axtree_txt"]
    assert (await act(session, "noop()"))["axtree_txt"] == first["axtree_txt"]
    last = await act(session, CLICK)
    assert (last["reward"], last["axtree_txt"]) == (1.0, "")


async def test_marks_are_removed(session):
    assert await js(session, "document.querySelectorAll('[aria-description]').length") == 0
    assert await js(session, "document.querySelectorAll('[bid]').length") > 5
