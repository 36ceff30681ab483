"""Episodes to look at: their files, the outline, and the page in a real browser."""

import base64
import io
import json
import re
import sys
from dataclasses import replace

import pytest
from PIL import Image

from envs.base import Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.reporting.gallery import OUTLINE, WIDTH, outlined, record_episode, write_gallery
from grpo.rollouts.rollout import Rollouts
from grpo.types import Completion

TASK = Task("click-word", 3)
SIZE = (60, 40)
EVIL = "</script><script>document.title = 'evil'</script><img src=x onerror=\"alert(1)\"> & 'é'"


def png(colour="white"):
    file = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(file, "PNG")
    return file.getvalue()


def pixels(picture, colour):
    """Where the picture has this colour."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return {(x, y) for x in range(60) for y in range(40) if image.getpixel((x, y)) == wanted}


def ring(left, top, right, bottom):
    """The pixels of a rectangle's edge, WIDTH wide, the ends right and bottom left out."""

    def block(a, b, c, d):
        return {(x, y) for x in range(a, c) for y in range(b, d)}

    inner = block(left + WIDTH, top + WIDTH, right - WIDTH, bottom - WIDTH)
    return block(left, top, right, bottom) - inner


def test_the_outline_is_around_the_box():
    assert outlined(png(), []) == png()
    assert pixels(outlined(png(), [(10, 8, 20, 12)]), OUTLINE) == ring(7, 5, 33, 23)
    two = pixels(outlined(png(), [(10, 8, 5, 5), (40, 20, 5, 5)]), OUTLINE)
    assert two == ring(7, 5, 18, 16) | ring(37, 17, 48, 28)


def test_the_outline_of_what_fills_the_page_is_on_the_picture():
    assert pixels(outlined(png(), [(0.0, 0.0, 60.0, 40.0)]), OUTLINE) == ring(0, 0, 60, 40)
    assert pixels(outlined(png(), [(59, 39, 1, 1)]), OUTLINE)  # no room for a ring
    beside = [(90, 8, 5, 5), (10, 90, 5, 5), (-90, 8, 5, 5)]
    assert not pixels(outlined(png(), beside), OUTLINE)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert outlined(b"a picture", ()) == b"a picture"
    with pytest.raises(ModuleNotFoundError, match="install the extra 'browser'"):
        outlined(b"a picture", [(1, 1, 1, 1)])


class Photographed(ScriptedEnv):
    """Its words stand where their number says; the picture turns grey after a call."""

    async def reset(self, task, *, screenshot=False):
        self.screenshot = screenshot
        return await super().reset(task)

    async def step(self, text):
        result = await super().step(text)
        box = (10.0, 8.0, 20.0, 12.0)
        return replace(result, acted_on=(box,) if result.valid_action else ())

    def _observe(self, error):
        seen = super()._observe(error)
        picture = png("white" if self.calls == 1 else "grey") if self.screenshot else None
        return replace(seen, screenshot=picture)


def answering(*texts, lines_cut=0):
    """A policy that says these texts in turn; "right" is the right answer."""
    left = list(texts)

    async def act(observation, seed):
        text = left.pop(0) if len(left) > 1 else left[0]
        if text == "right":
            word = observation.goal.removeprefix("Click ").removesuffix(".")
            (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
            text = f"click('{line[1:3]}')"
        return text, Completion((1,), (2, 3), (-1.0, -0.5), 0, "stop", lines_cut)

    return act


def playing(act, *, max_turns=4, env=Photographed):
    return Rollouts(EnvPool(env, 1), act, max_turns)


async def test_record_episode(tmp_path):
    await record_episode(playing(answering("right")), TASK, tmp_path / "a")
    folder = tmp_path / "a" / "click-word" / "3"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "episode.json"]
    first, last = ((folder / f"{k}.png").read_bytes() for k in (0, 1))
    assert pixels(first, OUTLINE) == ring(7, 5, 33, 23)  # on the page that the answer was to
    assert last == png("grey")
    episode = json.loads((folder / "episode.json").read_text())
    page, end = episode.pop("pages")
    assert episode.pop("goal").startswith("Click ")
    assert episode == {"task": "click-word", "seed": 3, "reward": 1.0, "solved": True,
                       "end": "done"}  # fmt: skip
    assert page["said"].startswith("click('")
    assert "Page:\n[" in page["read"]
    assert (page["reward"], page["valid"], page["error"]) == (1.0, True, "")
    assert (page["logprob"], page["tokens"]) == (-1.5, 2)
    assert list(end) == ["read"]
    assert f"Done so far: {page['said']}" in end["read"]


async def test_record_episode_keeps_nothing_of_a_session_that_died(tmp_path):
    fail_at = iter([3, 0])  # at its second answer
    play = playing(answering("noop()", "right"), env=lambda: Photographed(next(fail_at)))
    await record_episode(play, TASK, tmp_path)
    folder = tmp_path / "click-word" / "3"
    assert len(json.loads((folder / "episode.json").read_text())["pages"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "episode.json"]


async def test_record_episode_without_pictures_shows_refusals(tmp_path):
    await record_episode(playing(answering("hello"), max_turns=2, env=ScriptedEnv), TASK, tmp_path)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    episode = json.loads(path.read_text())
    assert [page.get("said") for page in episode["pages"]] == ["hello", "hello", None]
    assert [page.get("valid") for page in episode["pages"]] == [False, False, None]
    assert episode["pages"][0]["error"].startswith("expected one action")
    assert (episode["solved"], episode["end"]) == (False, "max_turns")


async def test_record_episode_shows_what_was_read_of_a_long_page(tmp_path):
    play = playing(answering("noop()", lines_cut=3), max_turns=1)
    await record_episode(play, TASK, tmp_path)
    episode = json.loads((tmp_path / "click-word" / "3" / "episode.json").read_text())
    read = episode["pages"][0]["read"]
    assert read.count("text '") == 1
    assert read.endswith("(3 more lines)")


async def test_record_episode_of_a_dropped_one_writes_nothing(tmp_path):
    play = playing(answering("right"), env=lambda: ScriptedEnv(fail_at=2))
    await record_episode(play, TASK, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


async def test_the_page_holds_all_and_asks_for_nothing(tmp_path):
    await record_episode(playing(answering(EVIL), max_turns=1), TASK, tmp_path / "before")
    await record_episode(playing(answering("right")), TASK, tmp_path / "after")
    write_gallery(tmp_path, title="a <b>run</b>")
    html = (tmp_path / "index.html").read_text()
    assert html.count("<script") == html.count("</script>") == 2
    before, rest = html.split('type="application/json">')
    data, after = rest.split("</script>", 1)
    assert not re.search(r"https?:|src=|href=|url\(|@import", before + after)
    data = json.loads(data)
    assert data["title"] == "a <b>run</b>"
    assert [(e["when"], e["solved"]) for e in data["episodes"]] == [
        ("after", True),
        ("before", False),
    ]
    assert data["episodes"][1]["pages"][0]["said"] == EVIL
    for episode in data["episodes"]:
        assert all(
            page["picture"].startswith("data:image/png;base64,") for page in episode["pages"]
        )


@pytest.mark.browser
async def test_the_page_in_a_browser(tmp_path):
    """Flip through it with keys and buttons, as a person would."""
    from playwright.async_api import async_playwright

    from envs.browser.server.chromium import find_chromium

    await record_episode(playing(answering("right")), TASK, tmp_path / "after")
    await record_episode(playing(answering(EVIL, "right")), TASK, tmp_path / "before")
    write_gallery(tmp_path, title="a run")
    (tmp_path / "empty").mkdir()
    write_gallery(tmp_path / "empty", title="nothing")

    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"]
        ) as browser,
    ):
        page = await browser.new_page(viewport={"width": 1100, "height": 600})
        errors, requests = [], []

        async def no_dialog(dialog):
            errors.append(dialog.message)
            await dialog.dismiss()

        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", no_dialog)
        page.on("request", lambda request: requests.append(request.url))
        page.set_default_timeout(20_000)

        async def shown():
            """Which episode and page, what was said, the picture."""
            picture = await page.evaluate("document.querySelector('#picture').src")
            about, where, said = [
                await page.inner_text(part) for part in ("#about", "#where", "#said")
            ]
            return about.split(" · ")[0], where, said, picture

        def picture(when, k):
            data = (tmp_path / when / "click-word" / "3" / f"{k}.png").read_bytes()
            return f"data:image/png;base64,{base64.b64encode(data).decode()}"

        await page.goto((tmp_path / "index.html").as_uri())
        right = json.loads((tmp_path / "after/click-word/3/episode.json").read_text())
        right = right["pages"][0]["said"]
        first = ("after", "answer 1 of 1", right, picture("after", 0))
        end = ("after", "the end", "", picture("after", 1))
        evil = ("before", "answer 1 of 2", EVIL, picture("before", 0))
        assert await shown() == first
        await page.keyboard.press("ArrowLeft")  # there is nothing before it
        assert await shown() == first
        await page.keyboard.press("ArrowRight")
        assert await shown() == end
        await page.keyboard.press("ArrowRight")  # on to the next episode
        assert await shown() == evil
        assert "no valid action" in await page.inner_text("#outcome")
        assert await page.inner_text("#read") != ""
        await page.click("#on")
        assert await shown() == ("before", "answer 2 of 2", right, picture("before", 1))
        await page.click("#back")
        assert await shown() == evil
        await page.keyboard.press("ArrowUp")
        assert await shown() == first
        await page.click("nav button:nth-of-type(2)")
        assert await shown() == evil
        assert await page.locator("nav [aria-current]").inner_text() == "✓\nseed 3\n2 answers"

        picture_seen = Image.open(io.BytesIO(await page.locator("#picture").screenshot()))
        assert len(picture_seen.getcolors(1 << 24)) == 1 + 1  # white, and the border around it
        whole = Image.open(io.BytesIO(await page.screenshot())).convert("L")
        assert len(whole.getcolors(1 << 24)) > 50  # text, smoothed

        assert await page.title() == "a run"  # EVIL's script did not run
        await page.goto((tmp_path / "empty" / "index.html").as_uri())
        await page.keyboard.press("ArrowRight")
        assert await page.inner_text("#goal") == "No episode was recorded."
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
