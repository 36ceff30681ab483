import json

import pytest

from envs.base import Task
from envs.browser.prompts import ACTION
from envs.browser.recorded import recorded_chats
from envs.demonstrations import Demonstration, append_demonstration

PAGES = ("searchbox 'Name' [3]", "button 'OK' [57]", "button 'Done' [58]")
CHATS = [
    ACTION.messages("Search.", PAGES[0], (), ""),
    ACTION.messages("Search.", PAGES[1], ("noop()",), ""),
    ACTION.messages("Search.", PAGES[2], ("noop()", "noop()"), ""),
]


def _record(folder, name, chats):
    pages = [{"prompt": chat[-1]["content"], "completion": "noop()"} for chat in chats]
    (folder / "media" / "after" / "A" / name).mkdir(parents=True)
    path = folder / "media" / "after" / "A" / name / "episode.json"
    path.write_text(json.dumps({"pages": pages}))
    return path


def test_chats_of_a_run(tmp_path):
    _record(tmp_path, "1", CHATS[:2])
    _record(tmp_path, "2", CHATS[1:])
    assert recorded_chats(tmp_path, 50) == CHATS
    assert recorded_chats(tmp_path, 2) == CHATS[:2]
    assert len(recorded_chats(tmp_path, 1, ["goto"])[0]) == len(CHATS[0])
    assert "goto('text')" in recorded_chats(tmp_path, 1, ["goto"])[0][0]["content"]


def test_chats_of_demonstrations(tmp_path):
    path = tmp_path / "demos.jsonl"
    actions = ("noop()",) * 3
    append_demonstration(path, Demonstration(Task("A", 1), "Search.", actions, PAGES))
    append_demonstration(path, Demonstration(Task("A", 2), "Search.", ("noop()",)))  # no pages
    assert recorded_chats(path, 50) == CHATS


def test_a_broken_episode_is_named(tmp_path):
    path = _record(tmp_path, "1", CHATS)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"episode\.json, got KeyError"):
        recorded_chats(tmp_path, 50)
