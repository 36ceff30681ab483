import hashlib
import json
import os
import shutil

import pytest
import torch

from grpo.config import Config
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from grpo.training.saver import Saver


@pytest.fixture
def policy(make_policy):
    return make_policy(double=False)


@pytest.fixture
def config(tmp_path):
    return Config(output=str(tmp_path), keep_checkpoints=2)


def names(config):
    return [path.name for path in checkpoints(config.folder)]


def test_round_trip(policy, make_policy, config):
    state = {"step": 3, "optimizer": {"state": {0: torch.arange(3.0)}}}
    folder = save_checkpoint(config, 3, policy, state)
    assert folder == config.folder / "checkpoints" / "step-000003"
    other = make_policy(double=False, start=True)
    loaded = load_checkpoint(config, other)
    assert loaded["step"] == 3
    assert torch.equal(loaded["optimizer"]["state"][0], torch.arange(3.0))
    for one, two in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_newest_checkpoints_are_kept(policy, config):
    for step in (1, 2, 9, 10, 11):
        save_checkpoint(config, step, policy, {"step": step})
    assert names(config) == ["step-000010", "step-000011"]
    assert load_checkpoint(config, policy)["step"] == 11


STATE = {"step": 0, "groups": 1, "episodes": 0, "version": 0, "seconds": {}, "failures": {}}
STATE |= {"date": "2026-11-26"}


def test_a_copy_that_a_user_keeps_beside_the_checkpoints_stays(policy, config):
    kept = save_checkpoint(config, 1, policy, {"step": 1})
    for name in ("step-000001-good", "step-backup", "step-000009 copy"):
        shutil.copytree(kept, kept.with_name(name))
    (kept.parent / "step-notes").touch()
    for step in (2, 3, 4):
        save_checkpoint(config, step, policy, {"step": step})
    assert names(config) == ["step-000003", "step-000004"]
    assert len(list(kept.parent.iterdir())) == 6
    assert load_checkpoint(config, policy)["step"] == 4


def test_checkpoints_are_in_the_order_of_their_steps(policy, config):
    save_checkpoint(config, 999_999, policy, {"step": 999_999})
    save_checkpoint(config, 1_000_000, policy, {"step": 1_000_000})
    assert names(config) == ["step-999999", "step-1000000"]
    assert load_checkpoint(config, policy)["step"] == 1_000_000


def test_a_file_with_the_name_of_a_checkpoint_is_replaced(policy, config):
    path = config.folder / "checkpoints" / "step-000001"
    path.parent.mkdir(parents=True)
    path.touch()
    save_checkpoint(config, 1, policy, {"step": 1})
    assert load_checkpoint(config, policy)["step"] == 1


def killed_while_removing(monkeypatch, config, policy, step):
    """Save a step; the removal of an older checkpoint ends after its first file."""
    unlink, calls = os.unlink, []

    def kill(*args, dir_fd=None):
        calls.extend([args] if dir_fd else [])  # of rmtree
        if len(calls) == 2:
            raise KeyboardInterrupt
        unlink(*args, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", kill)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(config, step, policy, STATE | {"step": step})
    monkeypatch.setattr(os, "unlink", unlink)


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(
    policy, config, monkeypatch
):
    for step in (1, 2):
        save_checkpoint(config, step, policy, {"step": step})
    killed_while_removing(monkeypatch, config, policy, 3)
    assert names(config) == ["step-000002", "step-000003"]
    save_checkpoint(config, 4, policy, {"step": 4})
    found = sorted(path.name for path in (config.folder / "checkpoints").iterdir())
    assert found == names(config) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_resumed_run_removes_what_a_kill_has_left(policy, config, monkeypatch, keep):
    """Also where it saves no other checkpoint: that of its last step is there."""
    config = config.replace(keep_checkpoints=keep, resume=True)
    saver = Saver(config, policy, World.single())
    saver.begin()
    for step in range(1, keep + 1):
        save_checkpoint(config, step, policy, STATE | {"step": step})
    killed_while_removing(monkeypatch, config, policy, keep + 1)
    folder = config.folder / "checkpoints"
    (folder / "step-000009.tmp").mkdir()
    assert len(list(folder.iterdir())) == keep + 2
    resumed = Saver(config, policy, World.single())
    assert resumed.load(lambda state: None)
    resumed.begin()
    assert sorted(path.name for path in folder.iterdir()) == names(config)
    assert len(names(config)) == keep


def test_a_second_checkpoint_of_a_step_replaces_the_first(policy, config):
    for value in (1, 2):
        save_checkpoint(config, 5, policy, {"value": value})
    assert names(config) == ["step-000005"]
    assert load_checkpoint(config, policy)["value"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_new_run_in_an_old_runs_folder(policy, tmp_path, keep):
    """The new run's first checkpoint is kept although its step is earlier than the old run's."""
    config = Config(output=str(tmp_path), keep_checkpoints=keep)
    for step in (20, 30):
        save_checkpoint(config, step, policy, {"run": "old"})
    folder = save_checkpoint(config, 10, policy, {"run": "new"})
    assert folder.is_dir()
    assert load_checkpoint(config, policy)["run"] == "new"


def test_unfinished_folders_are_ignored(policy, config, monkeypatch):
    save_checkpoint(config, 1, policy, {"step": 1})

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(config, 2, policy, {"step": 2})
    unfinished = config.folder / "checkpoints" / "step-000002.tmp"
    assert unfinished.is_dir()
    assert names(config) == ["step-000001"]
    assert load_checkpoint(config, policy)["step"] == 1
    save_checkpoint(config, 2, policy, {"step": 2})
    assert names(config) == ["step-000001", "step-000002"]
    assert not unfinished.exists()


def test_a_run_without_a_checkpoint_starts_from_the_beginning(policy, config):
    assert load_checkpoint(config, policy) is None


def test_an_adapter_of_another_rank_is_rejected(policy, make_policy, config):
    save_checkpoint(config, 1, policy, {"step": 1})
    with pytest.raises(ConfigError, match=r"cannot resume from step-000001: .*r=4") as error:
        load_checkpoint(config, make_policy(double=False, lora_r=4))
    assert "\n" not in str(error.value)


DAMAGE = {
    "half a state": lambda folder: cut(folder / "trainer.pt"),
    "half an adapter": lambda folder: cut(folder / "adapter" / "adapter_model.safetensors"),
    "another bit": lambda folder: flip(folder / "trainer.pt"),
    "no adapter": lambda folder: (folder / "adapter" / "adapter_model.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: cut(folder / "manifest.json"),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
}


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_corrupt_checkpoint_is_named_and_skipped(policy, config, caplog, perturb, damage):
    save_checkpoint(config, 1, policy, {"step": 1})
    before = [p.detach().clone() for p in policy.parameters()]
    perturb(policy)
    newest = save_checkpoint(config, 2, policy, {"step": 2})
    DAMAGE[damage](newest)
    assert load_checkpoint(config, policy)["step"] == 1
    assert "checkpoint step-000002 is corrupt (" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_nothing_is_loaded_if_all_checkpoints_are_corrupt(policy, config, perturb):
    for step in (1, 2):
        flip(save_checkpoint(config, step, policy, {"step": step}) / "trainer.pt")
    perturb(policy)
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(ConfigError, match=r"cannot resume: all 2 checkpoints in .* are corrupt"):
        load_checkpoint(config, policy)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.0002 and is 0.001. A run is resumed"),
        ({"task": "a,b", "seed": 4}, "task was ['click-test'] and is ['a', 'b'], seed was 0"),
        ({"max_turns": 1, "max_new_tokens": 1, "loss": "gspo", "beta": 1, "lora_r": 4},
         "max_turns was 10 and is 1, max_new_tokens was 24 and is 1, loss was 'grpo' and is 'gspo'"
         ", beta was 0.0 and is 1.0 and 1 more. A run"),
        ({"lora_r": 4}, "lora_r was 8 and is 4"),
        ({"credit": "steps"}, "credit was 'episode' and is 'steps'"),
        ({"discount": 0.9}, "discount was 0.95 and is 0.9"),
        ({"step_weight": 0.5}, "step_weight was 1.0 and is 0.5"),
        ({"model": "other/model"}, "model was '' and is 'other/model'"),
    ],
    ids=str,
)  # fmt: skip
def test_other_settings_are_rejected(policy, config, change, message):
    save_checkpoint(config, 1, policy, {"step": 1})
    other = Config(output=config.output, **change)
    with pytest.raises(ConfigError) as error:
        load_checkpoint(other, policy)
    assert str(error.value).startswith(f"cannot resume from step-000001: {message}")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 500, "env_url": "http://127.0.0.1:1", "resume": True},
        {"eval_episodes": 3, "held_out_tasks": "click-link", "blind": False},
        {"groups_per_step": 2, "device": "cuda", "max_tokens_per_microbatch": 100},
    ],
    ids=str,
)
def test_settings_that_may_change_when_a_run_is_resumed(policy, config, change):
    save_checkpoint(config, 1, policy, {"step": 1})
    assert load_checkpoint(config.replace(**change), policy)["step"] == 1


def test_another_format_is_rejected(policy, config):
    folder = save_checkpoint(config, 1, policy, {"step": 1})
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 7}))
    with pytest.raises(ConfigError, match="its format is 7, expected 2"):
        load_checkpoint(config, policy)


def test_a_full_disk_leaves_the_older_checkpoints_intact(policy, config, full_disk):
    state = {"step": 1, "optimizer": torch.zeros(5000)}
    save_checkpoint(config, 1, policy, state)
    for size in (100, 3000, 20_000):  # in the adapter's config, in its weights, in the state
        full_disk(size)
        with pytest.raises(OSError, match="too large"):
            save_checkpoint(config, 2, policy, STATE | {"step": 2})
        assert [path.name for path in (config.folder / "checkpoints").iterdir()] == ["step-000001"]
    assert load_checkpoint(config, policy)["step"] == 1


def set_manifest(**changes):
    """Return a function that changes a checkpoint's manifest; None deletes a key."""

    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text()) | changes
        manifest = {key: value for key, value in manifest.items() if value is not None}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def link(name, target):
    def change(folder):
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return change


FOREIGN = {
    "a device": set_manifest(sha256={"/dev/zero": "0"}),
    "a device by a relative path": set_manifest(sha256={"../../../../../../dev/zero": "0"}),
    "a link to a device": link("trainer.pt", "/dev/zero"),
    "a manifest without an end": link("manifest.json", "/dev/zero"),
    "a file of another folder": set_manifest(sha256={"/etc/hostname": "0"}),
    "a folder": set_manifest(sha256={"adapter": "0"}),
    "a name that cannot be": set_manifest(sha256={"a\0b": "0", "x" * 5000: "0"}),
    "no hashes": set_manifest(sha256={}),
    "hashes that are a list": set_manifest(sha256=["trainer.pt"]),
    "no hashes at all": set_manifest(sha256=None),
    "no format": set_manifest(format=None),
    "a format that is text": set_manifest(format="2"),
    "no configuration": set_manifest(config=None),
    "a configuration that is a list": set_manifest(config=[1]),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "null": lambda folder: (folder / "manifest.json").write_text("null"),
    "deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"),
    "large": lambda folder: (folder / "manifest.json").write_text(" " * 10_000_001),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_manifest_is_corrupt(policy, config, caplog, change):
    change(save_checkpoint(config, 1, policy, {"step": 1}))
    with pytest.raises(ConfigError, match="cannot resume: all 1 checkpoints") as error:
        load_checkpoint(config, policy)
    assert "are corrupt (the newest, step-000001: " in str(error.value)
    assert "\n" not in str(error.value)
    assert not caplog.records  # one line


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04K\x01."])
def test_a_foreign_state_is_one_line(policy, config, content):
    folder = save_checkpoint(config, 1, policy, {"step": 1})
    (folder / "trainer.pt").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    set_manifest(sha256={"trainer.pt": digest})(folder)
    with pytest.raises(ConfigError, match=r"cannot resume from step-000001: trainer\.pt") as error:
        load_checkpoint(config, policy)
    assert "\n" not in str(error.value)
