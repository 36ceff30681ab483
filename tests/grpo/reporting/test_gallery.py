"""Recorded episodes: their files, the outlines, and the page in a real browser."""

import base64
import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from envs.base import Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.reporting.gallery import (
    OUTLINE,
    WIDTH,
    cropped,
    outlined,
    record_episode,
    record_tally,
    write_gallery,
)
from grpo.rollouts.rollout import Rollouts
from grpo.safe_output import printable
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
    width, height = image.size
    every = [(x, y) for x in range(width) for y in range(height)]
    return {place for place in every if image.getpixel(place) == wanted}


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
    assert opened([last])[0].getcolors() == [(40 * 28, (128, 128, 128))]  # both without a border
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


async def test_an_episode_is_recorded_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "click-word" / "3"
    await record_episode(playing(saying("right")), TASK, tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, text, **_):
        raise OSError(28, "no space left", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        await record_episode(playing(saying("noop()")), TASK, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["3"]


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
    assert (data["name"], data["title"]) == (tmp_path.parent.name, "a <b>run</b>")
    assert [(e["label"], e["solved"]) for e in data["episodes"]] == [
        ("before", False),
        ("after", True),
    ]
    assert data["episodes"][0]["pages"][0]["completion"] == EVIL
    for episode in data["episodes"]:
        assert all(
            page["picture"].startswith("data:image/png;base64,") for page in episode["pages"]
        )


def labels(media):
    html = (media / "index.html").read_text()
    data = html.split('type="application/json">')[1].split("</script>")[0]
    return [(e["label"], e["task"], e["seed"]) for e in json.loads(data)["episodes"]]


def put(media, label, task, seed):
    folder = media / label / task / str(seed)
    folder.mkdir(parents=True)
    episode = {"task": task, "seed": seed, "goal": "", "pages": [{"prompt": ""}], "solved": True}
    (folder / "episode.json").write_text(json.dumps(episode))
    return folder / "episode.json"


def test_before_stands_before_after_and_seeds_in_their_order(tmp_path):
    for label in ("after", "evaluation", "before"):
        for task, seed in (("b", 3), ("a", 10), ("a", 9)):
            put(tmp_path, label, task, seed)
    put(tmp_path, "before", "a", 11).write_text('{"task": "a", "pa')  # of a killed run
    write_gallery(tmp_path, title="")
    expected = [("a", 9), ("a", 10), ("b", 3)]
    assert labels(tmp_path) == [
        (label, *entry) for label in ("before", "after", "evaluation") for entry in expected
    ]


def test_the_tally_is_of_the_whole_evaluation(tmp_path):
    put(tmp_path, "before", "a", 1)
    put(tmp_path, "after", "a", 1)
    record_tally(tmp_path / "before", {"a": {"solved": 21, "n": 100, "success": 0.21}})
    write_gallery(tmp_path, title="")
    html = (tmp_path / "index.html").read_text()
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    assert [e["tally"] for e in data["episodes"]] == [{"solved": 21, "n": 100}, None]


def test_control_characters_are_visible_in_the_page(tmp_path):
    evil = "\x1b[31m\u202e\ud800\r"
    pages = [{"prompt": evil, "completion": evil, "error": evil}]
    episode = {"task": evil, "seed": 1, "goal": evil, "pages": pages}
    put(tmp_path, "before", "a", 1).write_text(json.dumps(episode))
    write_gallery(tmp_path, title=evil)
    html = (tmp_path / "index.html").read_text()
    assert printable(html) == html
    data = json.loads(html.split('type="application/json">')[1].split("</script>")[0])
    (episode,) = data["episodes"]
    shown = [data["title"], episode["goal"], episode["task"], *episode["pages"][0].values()]
    assert shown == [r"\x1b[31m\u202e\ud800\r"] * 6


def picture(size, background, *boxes):
    image = Image.new("RGB", size, background)
    for colour, box in boxes:
        image.paste(colour, box)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(pictures):
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]


def test_the_border_is_cut_off_alike():
    """MiniWoB's page is 160 pixels wide, in the upper left corner of a grey picture."""
    page = ("white", (0, 0, 160, 210))
    pictures = [
        picture((332, 214), "#555", page),
        picture((332, 214), "#555", page, ("red", (150, 5, 170, 9))),  # a menu outside the page
    ]
    first, second = opened(cropped(pictures))
    assert first.size == second.size == (170, 210)
    assert first.tobytes() == opened(pictures)[0].crop((0, 0, 170, 210)).tobytes()
    assert opened(cropped(pictures[:1]))[0].size == (160, 210)


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ((100, 50, 300, 90), (92, 42, 308, 98)),  # in the middle: a margin stays
        ((3, 50, 300, 90), (0, 42, 303, 98)),
        ((0, 0, 640, 40), (0, 0, 640, 40)),
        ((0, 0, 10, 480), (0, 0, 10, 480)),
        ((639, 479, 640, 480), (0, 0, 640, 480)),  # the corner is page, the rest is not border
    ],
)
def test_no_page_loses_content(box, left):
    whole = picture((640, 480), "white", ("navy", box))
    (image,) = opened(cropped([whole]))
    assert image.size == (left[2] - left[0], left[3] - left[1])
    assert image.tobytes() == opened([whole])[0].crop(left).tobytes()


def test_pictures_that_are_not_cut(monkeypatch):
    same = [png("white"), png("grey")]
    assert cropped(same) == same
    sizes = [picture((9, 9), "white", ("red", (0, 0, 2, 2))), png()]
    assert cropped(sizes) == sizes
    assert cropped([]) == []
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cropped([b"a picture"]) == [b"a picture"]


@pytest.mark.parametrize("broken", [b"", b"no picture", png()[:60], png()[:-30]])
async def test_a_broken_picture_does_not_end_the_run(tmp_path, broken, caplog):
    class Broken(Photographed):
        def _observe(self, error):
            observation = super()._observe(error)
            return replace(observation, screenshot=broken if self.calls == 1 else png("grey"))

    await record_episode(playing(saying("right"), env=Broken), TASK, tmp_path)
    folder = tmp_path / "click-word" / "3"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "episode.json"]
    assert "left out: it cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("site/login", "site%2Flogin"), ("..", "%2E%2E"), ("a.b", "a.b"), ("a\x1b", r"a\x1b")),
        ("ü" * 200, "ü" * 25 + hashlib.sha256(("ü" * 200).encode()).hexdigest()),
    ],
)
async def test_a_tasks_name_is_one_folder(tmp_path, name, folder):
    class Named(ScriptedEnv):
        async def reset(self, task, **options):
            return await super().reset(TASK, **options)

    media = tmp_path / "run" / "media"
    await record_episode(playing(saying("right"), env=Named), Task(name, 3), media / "after")
    write_gallery(media, title="")
    assert [path.name for path in (media / "after").iterdir()] == [folder]
    assert labels(media) == [("after", printable(name), 3)]


@pytest.mark.browser
async def test_the_page_in_a_browser(tmp_path):
    """Step through it with keys and buttons, as a person would."""
    from playwright.async_api import async_playwright

    from envs.browser.server.chromium import find_chromium

    await record_episode(playing(saying("right")), TASK, tmp_path / "after")
    await record_episode(playing(saying(EVIL, "right")), TASK, tmp_path / "before")
    record_tally(tmp_path / "before", {"click-word": {"solved": 21, "n": 100}})
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
        evil = ("before", "turn 1 of 2", EVIL, picture("before", 0))
        first = ("after", "turn 1 of 1", right, picture("after", 0))
        end = ("after", "last page", "", picture("after", 1))
        assert await shown() == evil
        assert "not a valid action" in await page.inner_text("#outcome")
        assert await page.inner_text("#prompt") != ""
        await page.keyboard.press("ArrowLeft")  # there is nothing before it
        assert await shown() == evil
        await page.click("#on")
        assert await shown() == ("before", "turn 2 of 2", right, picture("before", 1))
        await page.click("#back")
        assert await shown() == evil
        await page.keyboard.press("ArrowDown")  # to the next episode
        assert await shown() == first
        await page.keyboard.press("ArrowRight")
        assert await shown() == end
        assert "the episode is over" in await page.inner_text("#outcome")
        await page.keyboard.press("ArrowRight")  # there is nothing after it
        assert await shown() == end
        await page.keyboard.press("ArrowUp")
        assert await shown() == evil
        await page.click("nav button:nth-of-type(2)")
        assert await shown() == first
        assert await page.locator("nav [aria-current]").inner_text() == "✓\nseed 3\n1 turn"
        await page.click("nav button:nth-of-type(1)")
        assert await page.inner_text("nav h1") == tmp_path.parent.name
        assert await page.inner_text("nav p:first-of-type") == "a run"
        tallies = [await p.inner_text() for p in await page.locator("nav h2 + p").all()]
        assert tallies == ["21 of 100 solved; 1 shown", "1 shown"]

        picture_seen = Image.open(io.BytesIO(await page.locator("#picture").screenshot()))
        assert len(picture_seen.getcolors(1 << 24)) == 1 + 1  # white, and the border around it
        whole = Image.open(io.BytesIO(await page.screenshot())).convert("L")
        assert len(whole.getcolors(1 << 24)) > 50  # text, smoothed

        assert await page.title() == f"{tmp_path.parent.name}: a run"  # EVIL's script did not run
        await page.goto((tmp_path / "empty" / "index.html").as_uri())
        await page.keyboard.press("ArrowRight")
        assert await page.inner_text("#goal") == "No episode was recorded."
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
