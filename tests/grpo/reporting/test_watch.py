"""The page of a run while it goes on: what is written when, and what a failure of it does."""

import asyncio
import io
import json
import signal
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from PIL import Image

from envs.base import EnvError, Task
from envs.pool import EnvPool
from grpo.config import Config
from grpo.distributed import World
from grpo.model.lora_policy import LoRAPolicy
from grpo.reporting.gallery import ending, read_state, write_state
from grpo.reporting.loggers import read_metrics
from grpo.reporting.progress import SafeConsole
from grpo.reporting.watch import STEPS_KEPT, Watch, best_and_worst
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.run import run_training
from grpo.runtime import Runtime
from grpo.shutdown import Shutdown, Stopped
from grpo.training.trainer import TrainingStep
from grpo.types import Completion, Episode, Group, Turn
from tests.support.models import make_llama, make_tokenizer
from tests.support.photographed import Photographed

EVIL = "<img src=x onerror=alert(1)></script><script>document.title='evil'</script>"


def episode(reward, task="click-word", seed=1):
    turn = Turn(Completion((1,), (2,), (-1.0,), 0, "stop"), f"said {reward}", True, reward)
    return Episode(Task(task, seed), (turn,), reward, reward > 0, "done", "a goal")


def group(*rewards, task="click-word", seed=1):
    episodes = tuple(episode(reward, task, seed) for reward in rewards)
    return Group(Task(task, seed), episodes)


def ends(best, worst):
    return {"best": best, "worst": worst}


A_AND_B = [group(0, 1, task="a"), group(0, 1, task="b", seed=2)]


@pytest.mark.parametrize(
    ("groups", "shown", "expected"),
    [
        ([group(0, 1, 0)], (), ends((1, 1), (0, 1))),
        ([group(1, 1), group(1, 1, seed=2)], (), {"all equal": (1, 1)}),
        # of one group, if one has both
        ([group(0, 0), group(1, 1, seed=2), group(0, 1, seed=3)], (), ends((1, 3), (0, 3))),
        ([group(0, 0), group(1, 1, seed=2)], (), ends((1, 2), (0, 1))),
        ([group(0, 0.5), group(0.5, 1, seed=2)], (), ends((1, 2), (0, 1))),
        ([group(-1, 3), group(-2, 2, seed=2)], (), ends((3, 1), (-2, 2))),
        # of the task that was shown the longest ago
        (A_AND_B, ("b", "a"), ends((1, 2), (0, 2))),
        (A_AND_B, ("a", "b", "a"), ends((1, 2), (0, 2))),
        (A_AND_B, ("a",), ends((1, 2), (0, 2))),
        ([group(1, task="a"), group(1, task="b", seed=2)], ("a",), {"all equal": (1, 2)}),
    ],
)  # fmt: skip
def test_best_and_worst(groups, shown, expected):
    chosen = best_and_worst(groups, shown)
    assert {role: (e.reward, e.task.seed) for role, e in chosen.items()} == expected


async def played(task, text, env):
    """Return the episode of one action, as training keeps it."""
    from grpo.rollouts.rollout import run_episode

    async def agent(observation, seed, env):
        return text(env), Completion((1,), (2,), (-1.0,), 0, "stop")

    return await run_episode(env, task, agent, max_turns=1, seed=[0])


async def a_step(number, env=Photographed):
    """Return a training step of one group, of which one episode succeeds and one does not."""
    task = Task("click-word", number)
    good = await played(task, lambda env: env.demonstrate(), env())
    bad = await played(task, lambda env: "noop()", env())
    metrics = {"success": 0.5, "reward": 0.5, "success/click-word": 0.5}
    return TrainingStep(number, metrics, [Group(task, (bad, good))], torch.zeros(2, 1))


@pytest.fixture
def make_watch(make_policy, executor, tmp_path):
    """A function that makes the page of a program without a generator."""

    def make(program="training", *, world=None, env=Photographed, step=0, **options):
        options = {"task": "click-word", "steps": 9, "gallery_every": 3, "max_turns": 1} | options
        runtime = Runtime(
            config=Config(output=str(tmp_path), **options),
            world=world or World.single(),
            policy=make_policy(double=False, start=True),
            executor=executor,
            shutdown=Shutdown(),
            generator=None,
            pool=EnvPool(env, 2),
            decodings={},
            max_prompt_tokens=0,
        )
        return Watch(runtime, program, SafeConsole(file=io.StringIO(), width=200), step)

    return make


def printed(watch):
    return watch._console.file.getvalue()


def page_data(folder, script=False):
    """Return the data of the page, or that of the script that a page which is open reads."""
    if script:
        text = (folder / "media" / "data.js").read_text()
        return json.loads(json.loads(text.removeprefix("receive(").rstrip()[:-1]))
    html = (folder / "media" / "index.html").read_text()
    return json.loads(html.split('type="application/json">')[1].split("</script>")[0])


async def test_what_is_written_at_each_step(make_watch, tmp_path):
    """Steps 1, 3 and the last of 4 are shown; each step says its number."""
    watch, media = make_watch(gallery_every=2, steps=4), tmp_path / "media"
    for number in range(1, 5):
        await watch.step(await a_step(number), {})
        state = read_state(media)
        assert (state["phase"], state["step"], state["steps"]) == ("running", number, 4)
        assert (state["success"], state["reward"]) == (0.5, 0.5)
        shown = [step for step in (1, 3, 4) if step <= number]
        recorded = [path.relative_to(media).as_posix() for path in media.glob("training/*/*/*")]
        assert sorted(recorded) == sorted(
            f"training/{step}/{role}/{name}"
            for step in shown
            for role in ("best", "worst")
            for name in ("0.png", "1.png", "episode.json")
        )
        data = page_data(tmp_path, script=True)
        assert data["state"]["step"] == shown[-1]
        assert data["state"]["version"] == state["version"]  # nothing else is to be read
        assert [(e["step"], e["role"], e["solved"]) for e in data["episodes"]] == [
            (step, role, role == "best") for step in shown for role in ("best", "worst")
        ]
        assert page_data(tmp_path) == data  # while the run goes on, pictures are files
        first = data["episodes"][0]["pages"][0]
        assert first["picture"] == "training/1/best/0.png"
        assert (media / first["picture"]).is_file()
        assert first["prompt"].startswith("Goal: Click ")
        assert first["completion"].startswith("click('")
    assert printed(watch) == ""
    watch.finish({})
    data = page_data(tmp_path)
    assert (data["state"]["phase"], read_state(media)["phase"]) == ("finished", "finished")
    assert data["episodes"][0]["pages"][0]["picture"].startswith("data:image/png;base64,")
    picture = page_data(tmp_path, script=True)["episodes"][0]["pages"][0]["picture"]
    assert picture == "training/1/best/0.png"  # for a page that is still open
    assert sorted(path.name for path in media.iterdir()) == [
        *("data.js", "index.html", "state.js", "training"),
    ]


async def test_the_newest_steps_stay(make_watch, tmp_path):
    watch = make_watch(gallery_every=1, steps=100)
    for number in range(1, STEPS_KEPT + 3):
        await watch.step(await a_step(number), {})
    kept = sorted(int(path.name) for path in (tmp_path / "media" / "training").iterdir())
    assert kept == list(range(3, STEPS_KEPT + 3))
    make_watch(gallery_every=1, step=5)  # a run that is resumed from step 5
    kept = sorted(int(path.name) for path in (tmp_path / "media" / "training").iterdir())
    assert kept == [3, 4, 5]
    (tmp_path / "media" / "training" / "3.old").mkdir()  # of a killed run
    watch.begin("", {})
    assert {e["step"] for e in page_data(tmp_path)["episodes"]} == {3, 4, 5}


async def test_gallery_every_0_shows_no_step(make_watch, tmp_path):
    watch = make_watch(gallery_every=0)
    watch.begin("evaluating random", {})
    before = (tmp_path / "media" / "state.js").read_bytes()
    await watch.step(await a_step(1), {})
    assert (tmp_path / "media" / "state.js").read_bytes() == before
    watch = make_watch(gallery_every=0, eval_episodes=0)  # nothing is ever shown
    (tmp_path / "media" / "index.html").unlink()
    watch.begin("", {})
    watch.finish({})
    assert not (tmp_path / "media" / "index.html").exists()


async def test_the_main_rank_alone_writes(make_watch, tmp_path):
    world = World({})
    world.rank, world.world_size = 1, 2
    watch = make_watch(world=world)
    watch.begin("evaluating random", {})
    await watch.step(await a_step(1), {})
    watch.finish({})
    with pytest.raises(OSError, match="of the test"), ending(tmp_path, world):
        raise OSError("of the test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("task", "title"),
    [("a", "a"), ("a,b,c,d", "a, b, c, d"), ("a,b,c,d,e,f", "a, b, c, d, 2 more tasks")],
)
def test_the_title_is_one_line(make_watch, tmp_path, task, title):
    make_watch(task=task).begin("", {})
    assert page_data(tmp_path)["title"] == title


class Dead(Photographed):
    async def reset(self, task, **options):
        raise EnvError(f"no browser: {EVIL}\x1b[2J")


async def test_a_failure_is_shown_once_and_ends_nothing(make_watch, tmp_path):
    watch = make_watch(env=Dead, gallery_every=1)
    for number in (1, 2):
        await watch.step(await a_step(number), {})
    (line,) = printed(watch).splitlines()
    assert line == (
        f"the run goes on without its page {tmp_path}/media/index.html: no browser: {EVIL}\\x1b[2J"
    )


async def test_a_full_disk_ends_nothing(make_watch, tmp_path, monkeypatch):
    """And whoever opens the page finds the one before."""
    watch = make_watch(gallery_every=1)
    await watch.step(await a_step(1), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(self, *_, **__):
        raise OSError(28, "no space left", str(self))

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    await watch.step(await a_step(2), {})
    watch.begin("evaluating trained", {})
    monkeypatch.undo()
    assert printed(watch).count("the run goes on without its page") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    await watch.step(await a_step(3), {})
    assert [e["step"] for e in page_data(tmp_path)["episodes"]] == [1, 1, 3, 3]


async def test_the_end_of_a_run_is_a_failure_of_its_own(make_watch, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "no space left", str(self))

    watch = make_watch()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):  # the report shows and keeps it
        watch.finish({})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Stopped(signal.SIGINT), {"phase": "stopped"}),
        (KeyboardInterrupt(), {"phase": "stopped"}),
        (asyncio.CancelledError(), {"phase": "stopped"}),
        (
            EnvError("no http://user:word@host\n\x1b"),
            {"phase": "failed", "reason": r"no http://***@host \x1b"},
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_page_says_how_a_program_ended(tmp_path, error, expected):
    world, media = World.single(), tmp_path / "media"
    media.mkdir()
    earlier = {"phase": "running", "written": 1.0, "version": "1"}
    write_state(media, earlier)
    with pytest.raises(type(error)), ending(tmp_path, world):  # of a program that was killed
        raise error
    assert read_state(media) == earlier

    def program():
        with ending(tmp_path, world):
            write_state(media, earlier | {"written": 1e12})
            raise error

    with pytest.raises(type(error)):
        program()
    state = read_state(media)
    assert state.pop("written") < 1e12
    assert state == {"version": "1"} | expected
    with ending(tmp_path, world):
        pass
    with pytest.raises(type(error)), ending(tmp_path / "none", world):
        raise error
    assert not (tmp_path / "none").exists()


class Guess(Photographed):
    """A word of an odd length clicks the right word, and one of an even length a wrong one.

    Rollouts of a step wait until `allowed` steps may be played. The goal is markup.
    """

    folder = Path()
    started, go_on = asyncio.Event(), asyncio.Event()
    allowed = 1

    async def reset(self, task, *, screenshot=False):
        self.started.set()
        if task.seed < HELD_OUT and not screenshot:  # not an episode that is played again
            while len(read_metrics(self.folder / "metrics.jsonl")) >= self.allowed:
                self.go_on.clear()
                await self.go_on.wait()
        name = task.name.removesuffix(EVIL)
        return await super().reset(Task(name, task.seed), screenshot=screenshot)

    async def step(self, text):
        right = self.demonstrate()
        wrong = next(f"click({n!r})" for n in self._words if f"click({n!r})" != right)
        return await super().step(right if len(text) % 2 else wrong)

    def _observe(self, error):
        observation = super()._observe(error)
        system, user = observation.messages
        user = user | {"content": f"{user['content']}\n<b>"}
        return replace(observation, goal=EVIL, messages=(system, user))

    @classmethod
    def allow(cls, steps):
        cls.allowed = steps
        cls.go_on.set()


INTERVALS = """
    const [set, clear] = [setInterval, clearInterval];
    window.intervals = new Set();
    window.setInterval = (call) => { const id = set(call, 100); intervals.add(id); return id; };
    window.clearInterval = (id) => { clear(id); intervals.delete(id); };
"""
"""Timers are counted, and quick."""


@pytest.mark.browser
async def test_a_run_is_watched_in_a_browser(make_policy, monkeypatch, tmp_path):
    """It refreshes itself while the run goes on, keeps the reader's place, and then stops."""
    from playwright.async_api import async_playwright

    from envs.browser.server.chromium import find_chromium

    policy = make_policy(double=False, start=True)
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: policy)
    monkeypatch.setattr(Guess, "folder", tmp_path / "run")
    for name in ("started", "go_on"):
        monkeypatch.setattr(Guess, name, asyncio.Event())
    config = Config(output=str(tmp_path / "run"), task=f"click-word{EVIL}", steps=3,
                    group_size=8, groups_per_step=1, max_turns=1, max_new_tokens=2,
                    eval_episodes=3, env_sessions=4, gallery_every=1, blind=False)  # fmt: skip
    running = asyncio.create_task(run_training(config, Guess))
    address = (tmp_path / "run" / "media" / "index.html").as_uri()
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox"]
        ) as browser,
    ):
        page = await browser.new_page(viewport={"width": 900, "height": 300})
        page.set_default_timeout(120_000)
        wrong, requests = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        await page.add_init_script(INTERVALS)

        async def phase(text):
            script = "text => document.querySelector('#phase').textContent.includes(text)"
            await page.wait_for_function(script, arg=text)

        async def place():
            return await page.evaluate("""() => [
                ...["about", "where", "prompt"].map((id) => document.getElementById(id).innerText),
                ...["#menu", "main"].map((id) => document.querySelector(id).scrollTop),
                document.activeElement.innerText,
                document.querySelector("[aria-current]").innerText,
                location.hash,
            ]""")

        await Guess.started.wait()
        await page.goto(address)
        await page.evaluate("window.notReloaded = true")
        await phase("running · step 1 of 3")
        await page.wait_for_selector("text=step 1 · click-word")
        assert await page.inner_text("#overview h2") == "Best and worst episode of step 1"
        assert float(await page.inner_text(".card .big")) < 1
        await page.click("#list button:has-text('best')")
        await page.keyboard.press("ArrowRight")
        await page.evaluate("document.querySelector('main').scrollTop = 77")
        await page.evaluate("document.querySelector('#menu').scrollTop = 33")
        before = await place()
        assert before[0].startswith(f"training step 1 · best · click-word{EVIL} · seed ")
        assert before[1] == "last page"
        assert before[3:6] == [33, 77, before[6]]
        assert before[2].endswith("\n<b>")
        picture = await page.evaluate("document.querySelector('#picture').naturalWidth")
        assert picture > 0
        Guess.allow(2)
        await page.wait_for_selector("text=step 2 · click-word")
        await phase("running · step 2 of 3")
        assert await place() == before
        Guess.allow(9)
        await phase("finished · 3 steps")
        await page.wait_for_selector("text=after · click-word")
        await page.wait_for_function("intervals.size === 0")  # it is not refreshed any more
        assert await place() == before
        assert await page.evaluate("window.notReloaded")
        await running

        requests.clear()
        await page.reload()  # the page of the finished run: at the same episode, without a timer
        assert (await place())[0] == before[0]
        assert await page.evaluate("intervals.size") == 0
        assert [url for url in requests if not url.startswith("data:")] == [address]
        await page.click("#list button:has-text('Overview')")
        texts = await page.locator(".task b").all_inner_texts()
        assert texts == [f"click-word{EVIL}"]
        assert await page.inner_text("#overview .card .big") != ""
        assert await page.title() == f"run: click-word{EVIL}"
        assert await page.locator("img[src='x']").count() == 0
        assert wrong == []
        for width in (1280, 800, 400):  # nothing is wider than the window
            await page.set_viewport_size({"width": width, "height": 700})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
async def test_real_pages_are_replayed_with_pictures(monkeypatch, tmp_path):
    """MiniWoB's click-test, on which the tiny model says nothing of use: all rewards are equal."""
    from envs.browser.pool import BrowserPool

    policy = LoRAPolicy(make_llama(max_position_embeddings=4096), make_tokenizer())
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: policy)
    config = Config(output=str(tmp_path / "run"), task="click-test", steps=1, max_new_tokens=2,
                    group_size=2, groups_per_step=1, max_turns=2, eval_episodes=0, env_workers=1,
                    env_sessions=2, logger="tensorboard")  # fmt: skip
    await run_training(config, BrowserPool(config))
    (shown,) = page_data(tmp_path / "run", script=True)["episodes"]
    assert (shown["step"], shown["role"], shown["goal"]) == (1, "all equal", "Click the button.")
    assert ["button 'Click Me!'" in page["prompt"] for page in shown["pages"]] == [True] * 3
    for k, page in enumerate(shown["pages"]):
        assert page["picture"] == f"training/1/all%20equal/{k}.png"
        with Image.open(tmp_path / "run" / "media" / unquote(page["picture"])) as picture:
            assert picture.width >= 160
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 8  # the button, smoothed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seconds"]["gallery"] > 0


async def test_the_training_is_the_same_without_a_gallery(make_policy, monkeypatch, tmp_path):
    """Episodes that are played again take nothing from those that are learned from."""
    kept = []
    for every in (0, 1):
        policy = make_policy(double=False, start=True)
        monkeypatch.setattr("grpo.runtime.load_policy", lambda _, policy=policy: policy)
        config = Config(output=str(tmp_path / str(every)), task="click-word", steps=3, seed=1,
                        group_size=8, groups_per_step=1, max_turns=2, max_new_tokens=2,
                        eval_episodes=0, gallery_every=every, learning_rate=0.01)  # fmt: skip
        monkeypatch.setattr(Guess, "allowed", 99)
        metrics = (await run_training(config, Guess)).metrics
        counted = ("seconds", "env/", "time")
        kept.append([{k: v for k, v in m.items() if not k.startswith(counted)} for m in metrics])
    assert (tmp_path / "1" / "media" / "training" / "3").is_dir()
    assert kept[0] == kept[1]
    assert kept[0][-1]["kl"] > 0  # something was learned
