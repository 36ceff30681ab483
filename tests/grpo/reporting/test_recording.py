"""Recorded episodes: what is kept of them, and episodes that are played again for pictures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from envs.base import EnvError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.reporting.pictures import OUTLINE
from grpo.reporting.recording import record_episode, record_replay
from tests.support.photographed import (
    TASK,
    Photographed,
    opened,
    pixels,
    playing,
    png,
    ring,
    saying,
)


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


async def replayed(folder, env=Photographed, *, episode_of=Photographed, texts=("noop()", "right")):
    """Play an episode without pictures, then again with pictures; return its files."""
    rollouts = playing(saying(*texts), env=episode_of)
    rollouts.valid_action_bonus = 0.25
    episode = await rollouts.episode(TASK, [0])
    pool = EnvPool(env, 1)
    await record_replay(pool, episode, folder / "training" / "5" / "best", bonus=0.25)
    (path,) = folder.rglob("episode.json")
    assert path == folder / "training" / "5" / "best" / "episode.json"
    return json.loads(path.read_text()), sorted(p.name for p in path.parent.glob("*.png"))


async def test_an_episode_is_played_again_for_its_pictures(tmp_path):
    episode, pictures = await replayed(tmp_path)
    assert pictures == ["0.png", "1.png", "2.png"]
    await record_episode(playing(saying("noop()", "right")), TASK, tmp_path / "other")
    recorded = json.loads((tmp_path / "other" / "click-word" / "3" / "episode.json").read_text())
    assert recorded.pop("reward") == 1.0
    assert episode.pop("reward") == 1.25  # with the bonus, as in training
    assert episode == recorded


class Changing(Photographed):
    """After an action its page is another one each time."""

    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1

    def _observe(self, error):
        observation = super()._observe(error)
        page = f"{observation.page}\n{self.made if self.calls > 1 else ''}"
        return replace(observation, page=page)


class Paying(Photographed):
    async def step(self, text):
        result = await super().step(text)
        return replace(result, reward=result.reward + 0.5)


class Ending(Photographed):
    async def step(self, text):
        return replace(await super().step(text), done=True)


@pytest.mark.parametrize(
    ("env", "pictures"), [(Changing, ["0.png"]), (Paying, []), (Ending, [])], ids=str
)
async def test_pictures_are_of_the_episode_or_missing(tmp_path, env, pictures):
    """A task that is not deterministic leads elsewhere when its actions are executed again."""
    own = Changing if env is Changing else Photographed
    episode, kept = await replayed(tmp_path, env, episode_of=own)
    assert kept == pictures
    assert ["prompt" in page for page in episode["pages"]] == [
        f"{k}.png" in pictures for k in range(3)
    ]
    assert episode["pages"][0]["completion"] == "noop()"
    assert episode["pages"][1]["completion"].startswith("click(")
    assert (episode["reward"], episode["solved"]) == (1.25, True)  # those of the training


async def test_a_session_that_fails_leaves_no_pictures(tmp_path):
    with pytest.raises(EnvError, match="is dead"):
        await replayed(tmp_path, lambda: Photographed(fail_at=3))
    assert list(tmp_path.iterdir()) == []
