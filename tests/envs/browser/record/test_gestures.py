"""What a person does at a real browser becomes these actions, which solve the task again."""

import asyncio
import re
from pathlib import Path

import pytest

from envs.demonstrations import read_demonstrations
from tests.envs.browser.record.person import named
from tests.support.site_server import SiteServer

FILE = Path(__file__).with_name("pages") / "tasks.py"
PAGES = Path(__file__).parents[1] / "pages"
FRAME = "document.querySelector('iframe')"


async def in_frame(person, name):
    """Return the middle of an element of the frame, in the window."""
    element = named(name).replace("document", f"{FRAME}.contentDocument")
    (x, y), (left, top) = (
        await person.where(element),
        await person.run(f"[{FRAME}.getBoundingClientRect().x + {FRAME}.clientLeft, "
                         f"{FRAME}.getBoundingClientRect().y + {FRAME}.clientTop]"),
    )  # fmt: skip
    return x + left, y + top


async def click_icon(r):
    await r.person.click("document.querySelector('circle')")


async def click_label_text(r):
    x, y = await r.person.run(
        "[...'xy'].map((at) => document.querySelector('label').getBoundingClientRect()[at])"
    )
    await r.person.click_at(x + 5, y + 5)
    await r.line("checkbox 'Newsletter'")


async def drag_card(r):
    await r.person.drag("card", "document.querySelector('[role=region]')")


async def drag_knob(r):
    ends = ("slider", "button")
    await r.person.drag(*(f"document.querySelector('[role={role}]')" for role in ends))


async def scroll_page(r):
    await r.person.scroll("document.body", 300)
    await r.person.scroll("document.body", 9000)
    await r.line("scroll(")
    await r.person.click(named("Go"))


async def scroll_box(r):
    await r.person.scroll("box.children[3]", 9000, below=25)  # between two lines
    await r.line("scroll(")
    await r.person.click(named("Last"))


async def fill_in_frame(r):
    await r.person.click_at(*await in_frame(r.person, "Mail"))
    await r.person.type("a@b.c")
    await r.person.run(f"{FRAME}.contentDocument.querySelector('select').focus()")
    await r.person.type("w")
    await r.person.click_at(*await in_frame(r.person, "Send"))


async def answer(r, **options):
    await r.person.open_dialog("document.querySelector('button')")
    await r.person.send("Page.handleJavaScriptDialog", accept=True, **options)


async def confirm(r):
    await answer(r)


async def prompt(r):
    await answer(r, promptText="Ann")


async def search(r):
    await r.person.click(named("Search"))
    await r.person.type("tea")
    await r.person.key("Enter")
    await r.line("press(")
    await r.person.click(named("Go"))


async def double_click(r):
    await r.person.click(named("Open"), count=2)


async def choose_in_menu(r):
    await r.person.point_at("document.querySelector('nav span')")
    await r.person.click(named("Log out"))


async def wait_for_button(r):
    r.site.release()
    there = f"new Promise((is) => setInterval(() => {named('Late')} && is(), 20))"
    await r.person.run(there)
    await r.person.click(named("Late"))


async def click_thrice(r):
    await r.person.click(named("Thrice"))
    await r.line("click(")
    await r.person.click(named("Go"))


async def press_button(r):
    await r.person.key("Tab")
    await r.person.key("Enter")


async def click_in_shadow(r):
    await r.person.click("host.shadowRoot.querySelector('i')")


async def write(r):
    await r.person.click("document.querySelector('[contenteditable]')")
    await r.person.type("Ho")
    await r.person.click_at(300, 300)


async def go_on_in_tab(r):
    await r.person.click(named("Open"))
    await r.line("click(")
    await r.person.sit_down()
    await r.person.click(named("Go"))


async def go_back(r):
    await r.person.click(named("There"))
    await r.line("click(")
    history = await r.person.send("Page.getNavigationHistory")
    earlier = history["entries"][history["currentIndex"] - 1]["id"]
    await r.person.send("Page.navigateToHistoryEntry", entryId=earlier)


async def type_address(r):
    address = (await r.person.run("location.origin")) + "/html?There"
    await r.person.send("Page.navigate", url=address, transitionType="typed")


async def answer_question(r):
    await r.person.sit_down(at_bar=True)
    await r.person.click("document.querySelector('input')")
    await r.person.type("blue")
    await r.person.key("Enter")


async def click_on_nothing(r):
    await r.person.click("plain")
    await r.line("not recorded", "Only text")
    await r.person.click(named("Off"))
    await r.line("not recorded", "disabled")
    await r.person.click(named("Go"), button="right")
    await r.line("not recorded", "right clicks")
    await r.person.click(named("Go"))


async def click_go(r):
    await r.person.click(named("Go"))


ID = r"'\w+'"
GESTURES = {
    "icon": (click_icon, rf"click\({ID}\)"),
    "label_text": (click_label_text, rf"click\({ID}\)"),
    "drag_html": (drag_card, rf"drag_and_drop\({ID}, {ID}\)"),
    "drag_mouse": (drag_knob, rf"drag_and_drop\({ID}, {ID}\)"),
    "scroll": (scroll_page, rf"scroll\(0, 1537\) click\({ID}\)"),
    "scroll_list": (scroll_box, rf"hover\({ID}\) scroll\(0, \d{{4}}\) click\({ID}\)"),
    "frame": (
        fill_in_frame,
        r"fill\('a\d+', 'a@b.c'\) select_option\('a\d+', 'weekly'\) click\('a\d+'\)",
    ),
    "confirm": (confirm, rf"click\({ID}\) click\({ID}\)"),
    "prompt": (prompt, rf"click\({ID}\) fill\({ID}, 'Ann'\) click\({ID}\)"),
    "enter": (search, rf"fill\({ID}, 'tea'\) press\({ID}, 'Enter'\) click\({ID}\)"),
    "double": (double_click, rf"dblclick\({ID}\)"),
    "hover": (choose_in_menu, rf"hover\({ID}\) click\({ID}\)"),
    "late": (wait_for_button, rf"noop\(\) click\({ID}\)"),
    "scripted": (click_thrice, rf"click\({ID}\) click\({ID}\)"),
    "keyboard": (press_button, rf"click\({ID}\)"),
    "shadow": (click_in_shadow, rf"click\({ID}\)"),
    "rich": (write, rf"fill\({ID}, 'Ho'\)"),
    "tab": (go_on_in_tab, rf"click\({ID}\) click\({ID}\)"),
    "back": (go_back, rf"click\({ID}\) go_back\(\)"),
    "address": (type_address, r"goto\('/html\?There'\)"),
    "asked": (answer_question, r"answer\('blue'\)"),
    "nothing": (click_on_nothing, rf"click\({ID}\)"),
    "written": (click_go, rf"click\({ID}\)"),
}


@pytest.fixture(scope="module")
def site():
    with SiteServer(PAGES) as site, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECORD_SITE", site.url)
        yield site


@pytest.fixture(scope="module")
def recorded(site, recording, tmp_path_factory):
    """The demonstrations of a recording in which every gesture was done, by task.

    Of the task `changing`: what was told.
    """
    output = tmp_path_factory.mktemp("recorded") / "demos.jsonl"

    async def act():
        async with recording(FILE, [*GESTURES, "changing"], output) as r:
            r.site = site
            for name, (gesture, _) in GESTURES.items():
                await r.ready(name)
                await gesture(r)
                await r.line("kept: ")
            await r.ready("changing")
            await r.person.click(named("First"))
            return await r.line("kept: ")

    told = asyncio.run(act())
    found = {each.task.name: each for each in read_demonstrations(output)}
    return found | {"changing": told}


@pytest.mark.parametrize("name", GESTURES)
def test_a_gesture_becomes_these_actions(recorded, name):
    assert re.fullmatch(GESTURES[name][1], " ".join(recorded[name].actions))


def test_what_does_not_succeed_again_is_not_kept_and_the_difference_is_told(recorded):
    assert recorded["changing"].strip() == (
        "not kept: played again, it is no success, before action 1 the page has "
        "button 'Other' instead of button 'First'; once more from the start"
    )
