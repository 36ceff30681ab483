"""Files of a run: as a whole or not at all, and a folder for one run."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from grpo.errors import ConfigError
from grpo.files import (
    FOLDERS,
    begin_run,
    locked,
    read_json,
    remove,
    replacing,
    run_id,
    set_aside,
    writable,
    write_text,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_file_is_utf8_whatever_the_locale(tmp_path):
    program = "import sys; from pathlib import Path; from grpo.files import write_text\n"
    program += f"write_text(Path({str(tmp_path / 'a.txt')!r}), '\\u00fc\\u2581\\n')"
    env = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True)
    assert (tmp_path / "a.txt").read_bytes() == "ü▁\n".encode()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "no space"), ValueError])
def test_what_was_there_stays_until_all_of_the_new_is_there(tmp_path, error):
    path, folder = tmp_path / "a.json", tmp_path / "adapter"
    write_text(path, "old")
    with replacing(folder) as new:
        new.mkdir()
        (new / "x").write_text("old")

    def half(path, *, is_folder):
        with replacing(path) as new:
            if is_folder:
                new.mkdir()
            (new / "x" if is_folder else new).write_text("ne")
            raise error

    kind = error if isinstance(error, type) else OSError
    with pytest.raises(kind):
        half(path, is_folder=False)
    with pytest.raises(kind):
        half(folder, is_folder=True)
    assert (path.read_text(), (folder / "x").read_text()) == ("old", "old")
    write_text(path, "new")
    with replacing(folder) as new:
        new.mkdir()
        (new / "y").write_text("new")
    assert path.read_text() == "new"
    assert [p.name for p in folder.iterdir()] == ["y"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "adapter"]


def test_a_full_disk_names_the_path_and_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "a.json"
    write_text(path, "old")
    full_disk(10)
    with pytest.raises(OSError, match=r"a\.json") as error:
        write_text(path, "x" * 100)
    full_disk(-1)
    assert "too large" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"3", b"[" * 100_000])
def test_a_json_file_that_a_kill_has_cut_off_is_empty(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == read_json(tmp_path / "none.json") == {}


def test_a_folder_has_one_run_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "a"
    with locked(folder):
        with pytest.raises(ConfigError, match=r"another run is writing to .*--output"):
            locked(folder).__enter__()
        program = "import sys; from pathlib import Path; from grpo.files import locked\n"
        program += f"with locked(Path({str(folder)!r})): pass"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
        )
        assert "another run is writing to" in done.stderr
        (folder / "x").touch()
    assert [p.name for p in folder.iterdir()] == ["x"]
    with locked(folder):
        (folder / "x").unlink()
    assert not folder.exists()


def test_a_killed_program_leaves_no_lock(tmp_path):
    program = "import os, signal; from pathlib import Path; from grpo.files import locked\n"
    program += f"with locked(Path({str(tmp_path)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert (tmp_path / "run.lock").exists()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write to the run's folder"):
        locked(tmp_path / "file" / "run").__enter__()


@pytest.mark.parametrize("use", [locked, writable])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path, use, name):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=rf"its {name} must be a folder, and is something else"):
        use(tmp_path).__enter__()
    (tmp_path / name).unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")  # on another disk, perhaps
    with use(tmp_path):
        pass


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_something_else_in_the_place_of_a_file_is_one_line(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(ConfigError, match=r"its metrics\.jsonl must be a file, and is something"):
        locked(tmp_path).__enter__()


def test_an_earlier_run_is_set_aside_and_nothing_else(tmp_path):
    assert set_aside(tmp_path) is None
    for name in ("README.md", "model", "media"):  # of somebody's folder
        (tmp_path / name).mkdir()
    assert set_aside(tmp_path) is None
    first = begin_run(tmp_path)
    assert run_id(tmp_path) == first
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    target = set_aside(tmp_path)
    assert target == tmp_path / "earlier" / first
    assert sorted(p.name for p in target.iterdir()) == ["checkpoints", "media", "model", "run.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "earlier", "mine.txt"]
    second = begin_run(tmp_path)
    assert second != first
    assert json.loads((tmp_path / "run.json").read_text())["id"] == second
    assert set_aside(tmp_path) == tmp_path / "earlier" / second


@pytest.mark.parametrize("name", ["../../up", "a/b", "", "..", 3, None, "x" * 65, "a\nb"])
def test_an_id_that_names_another_folder_is_none(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"id": name}))
    assert run_id(folder) == ""
    assert set_aside(folder).parent == folder / "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_that_was_copied_back_is_set_aside_beside_itself(tmp_path):
    first = begin_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    target = set_aside(tmp_path)
    shutil.copytree(target, tmp_path, dirs_exist_ok=True)
    again = set_aside(tmp_path)
    assert again.name.startswith(f"{first}-")
    assert {p.name for p in again.iterdir()} == {p.name for p in target.iterdir()}


def test_a_model_card_goes_with_its_run(tmp_path):
    begin_run(tmp_path)
    (tmp_path / "README.md").write_text("An adapter. Trained with GRPO, by grpo-browser.")
    target = set_aside(tmp_path)
    assert sorted(p.name for p in target.iterdir()) == ["README.md", "run.json"]
    begin_run(tmp_path)
    (tmp_path / "README.md").write_text("My notes on these runs.")
    set_aside(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "earlier"]


@contextmanager
def killed_before(number):
    """End the block before the number-th of the operations by which folders move and go."""
    left = [number]

    def counted(function):
        def call(*args, **options):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(os, "unlink", counted(os.unlink))
        patch.setattr(os, "rmdir", counted(os.rmdir))
        with pytest.raises(KeyboardInterrupt):
            yield


def fill(folder, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)


@pytest.mark.parametrize("number", range(1, 7))
def test_a_folder_that_is_removed_is_whole_or_gone(tmp_path, number):
    folder = tmp_path / "step-1"
    fill(folder, "abc")
    with killed_before(number):
        remove(folder)
    assert not folder.exists() or len(list(folder.iterdir())) == 3
    assert folder.exists() == (number <= 2)  # the first looks for what an earlier kill has left


@pytest.mark.parametrize("number", range(1, 9))
def test_a_folder_that_is_replaced_again_after_a_kill_leaves_nothing_over(tmp_path, number):
    folder = tmp_path / "adapter"
    fill(folder, "abc")
    with killed_before(number), replacing(folder) as new:
        fill(new, "xy")
    with replacing(folder) as new:
        fill(new, "xy")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert sorted(path.name for path in folder.iterdir()) == ["x", "y"]
