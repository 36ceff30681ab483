"""One session in a real browser, on pages that misbehave in ways MiniWoB's do not."""

import pytest

from envs.actions import parse_action
from envs.server.chromium import find_chromium
from envs.server.session import Session, SessionError, find_task

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        driver.selectors.set_test_id_attribute("bid")
        with driver.chromium.launch(executable_path=find_chromium()) as browser:
            yield browser


@pytest.fixture
def session(browser):
    session = Session(browser)
    session.reset(find_task("click-test"), seed=0, screenshot=False)
    yield session
    session.close()


CLICK = parse_action("click('13')")


def test_leaving_the_page_ends_the_episode_and_not_the_session(session):
    session.page.evaluate(
        "document.querySelector('button').addEventListener('click', "
        "event => { event.stopImmediatePropagation(); "
        "setTimeout(() => location.search = '?left', 15); }, true)"
    )
    answer = session.step(CLICK)
    assert (answer["done"], answer["reward"]) == (True, 0.0)
    assert answer["url"].endswith("?left")
    session.reset(find_task("click-test"), seed=0, screenshot=False)
    assert session.step(CLICK)["reward"] == 1.0


def test_a_busy_page_is_no_answer_of_the_page(session):
    session.page.evaluate(
        "setInterval(() => { const end = Date.now() + 700; while (Date.now() < end); }, 0)"
    )
    with pytest.raises(SessionError, match="click got no answer"):
        session.step(CLICK)


def test_an_element_under_another_is_the_policys_failure(session):
    session.page.evaluate(
        "const cover = document.createElement('div');"
        "cover.style = 'position: fixed; inset: 0; z-index: 9999';"
        "document.body.append(cover)"
    )
    assert session.step(CLICK)["error"] == "click failed: another element covers it"


@pytest.mark.parametrize(
    "animate",
    [
        "jQuery('#area').animate({width: 90}, 400, 'swing', ready)",
        "document.querySelector('#area').animate([{opacity: 0}, {}], 400).onfinish = ready",
    ],
)
def test_an_animation_is_awaited(session, animate):
    session.reset(find_task("click-collapsible"), seed=0, screenshot=False)
    session.page.evaluate(f"const ready = () => jQuery('#area').append('<p>ready</p>'); {animate}")
    assert "'ready'" in session.step(parse_action("noop()"))["axtree_txt"]


def test_step_after_the_end_is_refused(session):
    assert session.step(CLICK)["reward"] == 1.0
    with pytest.raises(SessionError, match="reset first"):
        session.step(CLICK)
