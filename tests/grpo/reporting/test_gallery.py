"""The page of recorded episodes: its data, and the page in a real browser."""

import base64
import hashlib
import io
import json
import re

import pytest
from PIL import Image

from envs.base import Task
from envs.scripted import ScriptedEnv
from grpo.reporting.gallery import write_gallery
from grpo.reporting.recording import record_episode, record_tally
from grpo.safe_output import printable
from tests.support.photographed import TASK, playing, saying

EVIL = "</script><script>document.title = 'evil'</script><img src=x onerror=\"alert(1)\"> & 'é'"


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


def test_numbers_that_json_has_not(tmp_path):
    """A reward that is not a number is shown as text; the page's parser would refuse it."""
    episode = {"task": "a", "seed": 1, "goal": "", "pages": [], "reward": float("nan")}
    put(tmp_path, "before", "a", 1).write_text(json.dumps(episode))
    write_gallery(tmp_path, title="", overview={"__proto__": float("-inf")})
    html = (tmp_path / "index.html").read_text()
    data = html.split('type="application/json">')[1].split("</script>")[0]
    data = json.loads(data, parse_constant=pytest.fail)
    assert data["episodes"][0]["reward"] == "nan"
    assert data["overview"] == {"__proto__": "-inf"}


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
        assert await page.inner_text("#name") == tmp_path.parent.name
        assert await page.inner_text("#title") == "a run"
        assert await page.locator("#state").is_hidden()  # nothing is said to run
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
