import pytest
import torch

from grpo.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from grpo.config import ConfigError


@pytest.fixture
def policy(make_policy):
    return make_policy(double=False)


def names(run):
    return [path.name for path in checkpoints(run)]


def test_round_trip(policy, make_policy, tmp_path):
    state = {"step": 3, "optimizer": {"state": {0: torch.arange(3.0)}}}
    folder = save_checkpoint(tmp_path, 3, policy, state, keep=2)
    assert folder == tmp_path / "checkpoints" / "step-000003"
    other = make_policy(double=False, start=True)
    loaded = load_checkpoint(tmp_path, other)
    assert loaded["step"] == 3
    assert torch.equal(loaded["optimizer"]["state"][0], torch.arange(3.0))
    for one, two in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_newest_are_kept(policy, tmp_path):
    for step in (1, 2, 9, 10, 11):
        save_checkpoint(tmp_path, step, policy, {"step": step}, keep=2)
    assert names(tmp_path) == ["step-000010", "step-000011"]
    assert load_checkpoint(tmp_path, policy)["step"] == 11


def test_the_same_step_again_replaces_it(policy, tmp_path):
    for value in (1, 2):
        save_checkpoint(tmp_path, 5, policy, {"value": value}, keep=2)
    assert names(tmp_path) == ["step-000005"]
    assert load_checkpoint(tmp_path, policy)["value"] == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_new_run_in_an_old_runs_folder(policy, tmp_path, keep):
    """Its first checkpoint is not taken for the oldest, nor the old run's for its newest."""
    for step in (20, 30):
        save_checkpoint(tmp_path, step, policy, {"run": "old"}, keep=2)
    folder = save_checkpoint(tmp_path, 10, policy, {"run": "new"}, keep=keep)
    assert folder.is_dir()
    assert load_checkpoint(tmp_path, policy)["run"] == "new"


def test_unfinished_folders_are_ignored(policy, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, policy, {"step": 1}, keep=2)

    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, policy, {"step": 2}, keep=2)
    assert (tmp_path / "checkpoints" / "step-000002.tmp").is_dir()
    assert names(tmp_path) == ["step-000001"]
    assert load_checkpoint(tmp_path, policy)["step"] == 1
    save_checkpoint(tmp_path, 2, policy, {"step": 2}, keep=2)
    assert names(tmp_path) == ["step-000001", "step-000002"]
    assert not (tmp_path / "checkpoints" / "step-000002.tmp").exists()


def test_nothing_to_resume(policy, tmp_path):
    with pytest.raises(ConfigError, match="nothing to resume: no checkpoint in "):
        load_checkpoint(tmp_path, policy)


def test_another_adapter(policy, make_policy, tmp_path):
    save_checkpoint(tmp_path, 1, policy, {"step": 1}, keep=2)
    with pytest.raises(ConfigError, match=r"cannot resume from step-000001: .*r=4") as error:
        load_checkpoint(tmp_path, make_policy(double=False, lora_r=4))
    assert "\n" not in str(error.value)
