"""Recorded episodes: their files, the outlines, and the page in a real browser."""

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
    """Return the coordinates at which the picture has this colour."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    wanted = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return {(x, y) for x in range(60) for y in range(40) if image.getpixel((x, y)) == wanted}


def ring(left, top, right, bottom):
    """Return the pixels of a rectangle's edge, WIDTH wide; right and bottom are exclusive."""

    def block(a, b, c, d):
        return {(x, y) for x in range(a, c) for y in range(b, d)}

    inner = block(left + WIDTH, top + WIDTH, right - WIDTH, bottom - WIDTH)
    return block(left, top, right, bottom) - inner


def test_the_outline_is_around_the_box():
    assert outlined(png(), []) == png()
    assert pixels(outlined(png(), [(10, 8, 20, 12)]), OUTLINE) == ring(7, 5, 33, 23)
    two = pixels(outlined(png(), [(10, 8, 5, 5), (40, 20, 5, 5)]), OUTLINE)
    assert two == ring(7, 5, 18, 16) | ring(37, 17, 48, 28)


def test_outlines_stay_on_the_picture():
    assert pixels(outlined(png(), [(0.0, 0.0, 60.0, 40.0)]), OUTLINE) == ring(0, 0, 60, 40)
    assert pixels(outlined(png(), [(59, 39, 1, 1)]), OUTLINE)  # no space for a ring
    beside = [(90, 8, 5, 5), (10, 90, 5, 5), (-90, 8, 5, 5)]
    assert not pixels(outlined(png(), beside), OUTLINE)


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert outlined(b"a picture", ()) == b"a picture"
    with pytest.raises(ModuleNotFoundError, match="install the extra 'browser'"):
        outlined(b"a picture", [(1, 1, 1, 1)])


class Photographed(ScriptedEnv):
    """Every action has a box; the picture is white at the start and grey after a step."""

    async def reset(self, task, *, screenshot=False):
        self.screenshot = screenshot
        return await super().reset(task)

    async def step(self, text):
        result = await super().step(text)
        box = (10.0, 8.0, 20.0, 12.0)
        return replace(result, acted_on=(box,) if result.valid_action else ())

    def _observe(self, error):
        observation = super()._observe(error)
        picture = png("white" if self.calls == 1 else "grey") if self.screenshot else None
        return replace(observation, screenshot=picture)


def saying(*texts, lines_cut=0):
    """Return an agent that says these texts in turn; "right" becomes the right click."""
    left = list(texts)

    async def act(observation, seed, env):
        text = left.pop(0) if len(left) > 1 else left[0]
        if text == "right":
            word = observation.goal.removeprefix("Click ").removesuffix(".")
            (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
            text = f"click('{line[1:3]}')"
        return text, Completion((1,), (2, 3), (-1.0, -0.5), 0, "stop", lines_cut)

    return act


def playing(agent, *, max_turns=4, env=Photographed):
    return Rollouts(EnvPool(env, 1), agent, max_turns)


async def test_record_episode(tmp_path):
    await record_episode(playing(saying("right")), TASK, tmp_path / "a")
    folder = tmp_path / "a" / "click-word" / "3"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "episode.json"]
    first, last = ((folder / f"{k}.png").read_bytes() for k in (0, 1))
    assert pixels(first, OUTLINE) == ring(7, 5, 33, 23)  # on the page before the click
    assert last == png("grey")
    episode = json.loads((folder / "episode.json").read_text())
    page, end = episode.pop("pages")
    assert episode.pop("goal").startswith("Click ")
    assert episode == {"task": "click-word", "seed": 3, "reward": 1.0, "solved": True,
                       "stop_reason": "done"}  # fmt: skip
    assert page["completion"].startswith("click('")
    assert "Page:\n[" in page["prompt"]
    assert (page["reward"], page["valid"], page["error"]) == (1.0, True, "")
    assert (page["logprob"], page["tokens"]) == (-1.5, 2)
    assert list(end) == ["prompt"]
    assert f"Done so far: {page['completion']}" in end["prompt"]


async def test_record_episode_keeps_nothing_of_a_session_that_failed(tmp_path):
    fail_at = iter([3, 0])  # at its second step
    play = playing(saying("noop()", "right"), env=lambda: Photographed(next(fail_at)))
    await record_episode(play, TASK, tmp_path)
    folder = tmp_path / "click-word" / "3"
    assert len(json.loads((folder / "episode.json").read_text())["pages"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "episode.json"]


async def test_record_episode_without_pictures_shows_errors(tmp_path):
    await record_episode(playing(saying("hello"), max_turns=2, env=ScriptedEnv), TASK, tmp_path)
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    episode = json.loads(path.read_text())
    assert [page.get("completion") for page in episode["pages"]] == ["hello", "hello", None]
    assert [page.get("valid") for page in episode["pages"]] == [False, False, None]
    assert episode["pages"][0]["error"].startswith("expected one action")
    assert (episode["solved"], episode["stop_reason"]) == (False, "max_turns")


async def test_record_episode_shows_the_part_of_a_long_page_that_was_read(tmp_path):
    play = playing(saying("noop()", lines_cut=3), max_turns=1)
    await record_episode(play, TASK, tmp_path)
    episode = json.loads((tmp_path / "click-word" / "3" / "episode.json").read_text())
    prompt = episode["pages"][0]["prompt"]
    assert prompt.count("text '") == 1
    assert prompt.endswith("(3 more lines)")


async def test_record_episode_writes_nothing_of_a_dropped_episode(tmp_path):
    play = playing(saying("right"), env=lambda: ScriptedEnv(fail_at=2))
    await record_episode(play, TASK, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


async def test_the_page_is_a_single_file_without_requests(tmp_path):
    await record_episode(playing(saying(EVIL), max_turns=1), TASK, tmp_path / "before")
    await record_episode(playing(saying("right")), TASK, tmp_path / "after")
    write_gallery(tmp_path, title="a <b>run</b>")
    html = (tmp_path / "index.html").read_text()
    assert html.count("<script") == html.count("</script>") == 2
    before, rest = html.split('type="application/json">')
    data, after = rest.split("</script>", 1)
    assert not re.search(r"https?:|src=|href=|url\(|@import", before + after)
    data = json.loads(data)
    assert data["title"] == "a <b>run</b>"
    assert [(e["label"], e["solved"]) for e in data["episodes"]] == [
        ("after", True),
        ("before", False),
    ]
    assert data["episodes"][1]["pages"][0]["completion"] == EVIL
    for episode in data["episodes"]:
        assert all(
            page["picture"].startswith("data:image/png;base64,") for page in episode["pages"]
        )


@pytest.mark.browser
async def test_the_page_in_a_browser(tmp_path):
    """Step through it with keys and buttons, as a person would."""
    from playwright.async_api import async_playwright

    from envs.browser.server.chromium import find_chromium

    await record_episode(playing(saying("right")), TASK, tmp_path / "after")
    await record_episode(playing(saying(EVIL, "right")), TASK, tmp_path / "before")
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
            """Return the episode and the page that are shown, the completion, the picture."""
            picture = await page.evaluate("document.querySelector('#picture').src")
            about, where, completion = [
                await page.inner_text(part) for part in ("#about", "#where", "#completion")
            ]
            return about.split(" · ")[0], where, completion, picture

        def picture(label, k):
            data = (tmp_path / label / "click-word" / "3" / f"{k}.png").read_bytes()
            return f"data:image/png;base64,{base64.b64encode(data).decode()}"

        await page.goto((tmp_path / "index.html").as_uri())
        right = json.loads((tmp_path / "after/click-word/3/episode.json").read_text())
        right = right["pages"][0]["completion"]
        first = ("after", "turn 1 of 1", right, picture("after", 0))
        end = ("after", "last page", "", picture("after", 1))
        evil = ("before", "turn 1 of 2", EVIL, picture("before", 0))
        assert await shown() == first
        await page.keyboard.press("ArrowLeft")  # there is nothing before it
        assert await shown() == first
        await page.keyboard.press("ArrowRight")
        assert await shown() == end
        assert "the episode is over" in await page.inner_text("#outcome")
        await page.keyboard.press("ArrowRight")  # to the next episode
        assert await shown() == evil
        assert "not a valid action" in await page.inner_text("#outcome")
        assert await page.inner_text("#prompt") != ""
        await page.click("#on")
        assert await shown() == ("before", "turn 2 of 2", right, picture("before", 1))
        await page.click("#back")
        assert await shown() == evil
        await page.keyboard.press("ArrowUp")
        assert await shown() == first
        await page.click("nav button:nth-of-type(2)")
        assert await shown() == evil
        assert await page.locator("nav [aria-current]").inner_text() == "✓\nseed 3\n2 turns"

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
