"""One session in a real browser, also on pages that misbehave as MiniWoB's do not."""

import asyncio
import os
import signal

import pytest
import pytest_asyncio

from envs.browser.actions import ACTIONS, parse_action
from envs.browser.miniwob.files import miniwob_url
from envs.browser.server import chromium_pool
from envs.browser.server.cdp.chromium import Chromium
from envs.browser.server.cdp.page import Page
from envs.browser.server.chromium import find_chromium
from envs.browser.server.chromium_pool import ChromiumPool, Slot
from envs.browser.server.errors import BrowserError, BrowserGone, SessionError
from envs.browser.server.session import Session

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
async def session(browser):
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


async def js(session, expression):
    return await session.page.run(expression)


@pytest.mark.parametrize("delay", [0.0, 0.5])  # of the new page: until then the old one responds
async def test_navigating_away_ends_the_episode_but_not_the_session(session, monkeypatch, delay):
    admit = session.page._admit
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(session.page, "_admit", lambda *a: loop.call_later(delay, admit, *a))
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
        "setInterval(() => { const end = Date.now() + 700; while (Date.now() < end); }, 0); 0",
    )
    async with asyncio.timeout(60):
        assert (await act(session, CLICK))["reward"] == 1.0


async def test_a_hanging_page_hits_the_deadline_and_the_other_pages_go_on(browser):
    pool = ChromiumPool(1, deadline_s=4.0, idle_s=60.0)
    pool.slots[0]._chromium = browser
    hung, other = pool.open(), pool.open()
    for session in (hung, other):
        await session.call("reset", "click-test", 0)
    hung._session.page.send("Runtime.evaluate", expression="for (;;) {}")
    with pytest.raises(SessionError, match="lost: no response within 4 s"):
        await hung.call("step", parse_action(CLICK))
    with pytest.raises(SessionError, match="open a new one"):
        await hung.call("reset", "click-test", 0)
    assert (await other.call("step", parse_action(CLICK)))["reward"] == 1.0
    assert pool.slots[0].sessions == {other}


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


async def test_a_hanging_browser_is_replaced_before_the_deadline(monkeypatch):
    monkeypatch.setattr(chromium_pool, "WATCH_INTERVAL_S", 0.2)
    monkeypatch.setattr(chromium_pool, "HEARTBEAT_S", 3.0)
    pool = ChromiumPool(1, deadline_s=60.0, idle_s=60.0)
    await pool.start()
    session = pool.open()
    await session.call("reset", "click-test", 0)
    hung = pool.slots[0]._chromium
    os.kill(hung.process.pid, signal.SIGSTOP)
    with pytest.raises(SessionError, match="lost: the browser is gone"):
        async with asyncio.timeout(30):
            await session.call("step", parse_action(CLICK))
    async with asyncio.timeout(10):
        while hung.process.poll() is None:
            await asyncio.sleep(0.01)
    other = pool.open()
    assert (await other.call("reset", "click-test", 0))["goal"] == "Click the button."
    await pool.stop()


async def test_a_page_that_crashes_fails_at_once(session):
    with pytest.raises(BrowserError, match="the page crashed"):
        async with asyncio.timeout(20):
            await session.page.send("Page.crash")


async def test_a_browser_that_dies_fails_at_once(session, browser):
    os.kill(browser.process.pid, signal.SIGKILL)
    with pytest.raises(BrowserGone):
        async with asyncio.timeout(20):
            await act(session, CLICK)
    assert not browser.alive
    with pytest.raises(BrowserGone):
        await js(session, "1")


async def test_a_browser_that_cannot_start_says_why():
    with pytest.raises(BrowserGone, match="last output:\\ncat: unrecognized"):
        await Chromium(["cat"]).start()
    browser = Chromium([find_chromium(), "--headless"])
    assert not browser.alive
    with pytest.raises(BrowserGone):
        await browser.send("Browser.getVersion")


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
    "<p bid=x style='display: none'>a</p>": "the element is not visible",
    "<p bid=x style='visibility: hidden'>a</p>": "the element is not visible",
    "<button bid=x disabled>a</button>": "the element is not enabled",
    "<fieldset disabled><button bid=x>a</button></fieldset>": "the element is not enabled",
    "<button bid=x style='position: fixed; left: -500px'>a</button>": "the element is outside "
    "the window",
    "<p bid=y>a</p>": "there is no element x",
}


@pytest.mark.parametrize("body", REFUSALS)
async def test_elements_that_cannot_be_clicked(session, body):
    await html(session, body)
    assert (await act(session, "click('x')"))["error"] == f"click failed: {REFUSALS[body]}"


async def test_clicking_a_moving_element_is_an_action_error(session):
    await html(session, "<button bid=x style='position: absolute'>a</button>")
    await js(
        session,
        "let n = 0; const move = () => { document.querySelector('[bid=x]').style.left = "
        "`${n++ % 50}px`; requestAnimationFrame(move) }; move()",
    )
    assert (await act(session, "click('x')"))["error"] == "click failed: the element keeps moving"


async def test_an_element_that_appears_late_is_waited_for(session):
    await html(session, "<button bid=x hidden onclick='core.endEpisode(1)'>a</button>")
    await js(session, "setTimeout(() => document.querySelector('[bid=x]').hidden = false, 200); 0")
    assert (await act(session, "click('x')"))["reward"] == 1.0


async def test_an_element_out_of_view_is_scrolled_to(session):
    await html(
        session,
        "<div style='height: 90px; overflow: scroll'><div style='height: 900px'></div>"
        "<button bid=x onclick='core.endEpisode(1)'>a</button></div>",
    )
    assert (await act(session, "click('x')"))["reward"] == 1.0


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
    "<input bid=x value=old>": "new",
    "<textarea bid=x>old</textarea>": "new",
    "<input bid=x type=password value=old>": "new",
    "<input bid=x type=number value=1>": "27",
    "<input bid=x type=date>": "2020-02-29",
    "<input bid=x type=range max=10>": "7",
    "<input bid=x value=old> ": "Zoë, 東京",
    "<input bid=x value=old>  ": "",
    "<label bid=x>name <input value=old></label>": "new",
}


@pytest.mark.parametrize("body", FIELDS)
async def test_fill(session, body):
    await html(session, body)
    await js(session, "seen = 0; addEventListener('input', () => seen++)")
    text = FIELDS[body]
    assert (await act(session, f"fill('x', {text!r})"))["error"] == ""
    assert await js(session, "document.querySelector('input, textarea').value") == text
    assert await js(session, "seen") == 1


async def test_clear(session):
    await html(session, "<input bid=x value=old>")
    await act(session, "clear('x')")
    assert await js(session, "document.querySelector('input').value") == ""


async def test_fill_contenteditable(session):
    await html(session, "<div bid=x contenteditable>old</div>")
    assert (await act(session, "fill('x', 'new')"))["error"] == ""
    assert await js(session, "document.querySelector('[bid=x]').textContent") == "new"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<p bid=x>a</p>", "the element is not a text field"),
        ("<input bid=x readonly>", "the element is not editable"),
        ("<input bid=x type=checkbox>", "an input of type checkbox cannot be filled"),
        ("<input bid=x type=number>", "the field takes numbers only"),
        ("<input bid=x type=date>", "not a value of a date field"),
    ],
)
async def test_elements_that_cannot_be_filled(session, body, reason):
    await html(session, body)
    assert (await act(session, "fill('x', 'new')"))["error"] == f"fill failed: {reason}"


async def test_select_option(session):
    await html(session, "<select bid=x><option value=1>one<option value=2>two<option disabled>no")
    for text in ("2", "one"):
        assert (await act(session, f"select_option('x', {text!r})"))["error"] == ""
        wanted = {"one": "1"}.get(text, text)
        assert await js(session, "document.querySelector('select').value") == wanted
    errors = [(await act(session, f"select_option('x', {t!r})"))["error"] for t in ("no", "Oslo")]
    assert errors == [
        "select_option failed: the option is not enabled",
        "select_option failed: there is no such option",
    ]


async def test_check(session):
    await html(session, "<input bid=x type=checkbox><p bid=y>a</p>")
    for text, state in [("check", True), ("check", True), ("uncheck", False), ("uncheck", False)]:
        await act(session, f"{text}('x')")
        assert await js(session, "document.querySelector('[bid=x]').checked") is state
    error = (await act(session, "check('y')"))["error"]
    assert error == "check failed: the element is neither a checkbox nor a radio button"


async def test_press(session):
    await html(session, "<input bid=x value=abc>")
    await js(session, "keys = []; addEventListener('keydown', e => keys.push([e.key, e.keyCode]))")
    for combination in ("End", "Shift+d", "Backspace", "!", "Control+a", "Enter"):
        assert (await act(session, f"press('x', {combination!r})"))["error"] == ""
    assert await js(session, "document.querySelector('input').value") == "abc!"
    assert await js(session, "keys") == [
        ["End", 35], ["Shift", 16], ["d", 68], ["Backspace", 8], ["!", 49],
        ["Control", 17], ["a", 65], ["Enter", 13],
    ]  # fmt: skip
    error = (await act(session, "press('x', 'Banana')"))["error"]
    assert error == "press failed: unknown key 'Banana'"


async def test_pointer_events(session):
    await html(session, "<button bid=x>a</button><button bid=y>b</button>")
    await js(
        session,
        "seen = []; for (const kind of ['mouseover', 'mousedown', 'mouseup', 'click', 'dblclick'])"
        "addEventListener(kind, e => seen.push(kind + ' ' + e.target.textContent + e.buttons))",
    )
    await act(session, "hover('x')")
    await act(session, "dblclick('y')")
    await act(session, "drag_and_drop('x', 'y')")
    assert await js(session, "seen") == [
        "mouseover a0", "mouseover b0",
        "mousedown b1", "mouseup b0", "click b0", "mousedown b1", "mouseup b0", "click b0",
        "dblclick b0",
        "mouseover a0", "mousedown a1", "mouseover b1", "mouseup b0",
        "click ab0",  # on their common parent
    ]  # fmt: skip


EFFECTS = {
    "noop()": "seen.join() === ''",
    "focus('field')": "document.activeElement === field",
    "press('field', 'End')": "seen.includes('keydown field')",
    "clear('field')": "field.value === ''",
    "fill('field', 'new')": "field.value === 'new'",
    "check('box')": "box.checked",
    "uncheck('box')": "!box.checked",
    "select_option('choice', 'b')": "choice.value === 'b'",
    "click('one')": "seen.includes('click one')",
    "dblclick('one')": "seen.includes('dblclick one')",
    "hover('two')": "two.matches(':hover')",
    "drag_and_drop('one', 'two')": "seen.includes('mouseup two')",
    "scroll(0, 150)": "scrollY === 100",
}


async def test_the_effect_of_every_action(session):
    assert {parse_action(text).name for text in EFFECTS} == set(ACTIONS)
    await html(
        session,
        "<input bid=field id=field value=old><input bid=box id=box type=checkbox>"
        "<select bid=choice id=choice><option>a<option>b</select>"
        "<button bid=one id=one>1</button><button bid=two id=two>2</button>"
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
        "<div onmouseover='space.hidden = false'><button id=other bid=y>a</button><br>"
        "<button bid=x onclick='core.endEpisode(1)'>b</button></div>",
    )
    await js(session, "seen = 0; other.onmousedown = () => seen++; 0")
    result = await act(session, "click('x')")
    assert (result["error"], result["reward"], await js(session, "seen")) == ("", 1.0, 0)
    await html(session, "<div bid=x>a</div>")
    await js(session, "document.querySelector('[bid=x]').onmouseover = e => e.target.remove()")
    assert (await act(session, "click('x')"))["error"] == "click failed: there is no element x"


async def test_boxes_are_the_visible_parts(session):
    place = "style='position: fixed; width: 50px; height: 20px; box-sizing: border-box; "
    scrolled = "<div style='position: fixed; left: 20px; top: 90px; width: 90px; height: 30px; "
    await html(
        session,
        f"<button bid=a {place}left: 20px; top: 60px'>a</button>"
        f"<button bid=b {place}left: 300px; top: 60px'>half outside</button>"
        f"<button bid=c {place}left: 400px; top: 60px'>outside</button>"
        f"<button bid=d {place}visibility: hidden'>unseen</button>"
        "<button bid=e style='display: none'>gone</button>"
        f"{scrolled}overflow: hidden'><div style='height: 20px'></div>"
        "<p bid=f style='margin: 0; height: 40px'>a quarter</p><p bid=g>nothing</p></div>",
    )
    assert "boxes" not in (await act(session, "noop()"))["metadata"]  # they take time
    session._screenshot = True
    boxes = (await act(session, "noop()"))["metadata"]["boxes"]
    assert {bid: box for bid, box in boxes.items() if bid in "abcdefg"} == {
        "a": [20, 60, 50, 20],
        "b": [300, 60, 32, 20],
        "f": [20, 110, 90, 10],
    }


async def test_the_dragged_element_may_cover_its_target(session):
    await session.reset("drag-box", 0)
    result = await act(session, "drag_and_drop('17', '18')")
    assert result["error"] == ""


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
