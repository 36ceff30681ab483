"""What a run leaves when parts of it fail: results first, each failure named, the rest done."""

import asyncio
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import huggingface_hub.constants
import pytest

import grpo
from envs.base import EnvError
from envs.scripted import ScriptedEnv
from grpo.config import Config
from grpo.errors import ConfigError
from grpo.files import locked, run_id
from grpo.reporting.hub import HubError, push_to_hub
from grpo.reporting.loggers import MetricsLog, read_metrics
from grpo.reporting.report import Report
from grpo.shutdown import Stopped
from grpo.training.checkpoint import checkpoints
from grpo.training.warm_start import WarmStart


@pytest.fixture(autouse=True)
def tiny(make_policy, monkeypatch):
    """Programs get a tiny policy whatever model they ask for."""
    monkeypatch.setattr("grpo.runtime.load_policy", lambda _: make_policy(double=False, start=True))


@pytest.fixture
def config(tmp_path):
    return Config(output=str(tmp_path / "run"), task="click-word", eval_episodes=2, max_turns=3,
                  max_new_tokens=2, steps=2, group_size=4, groups_per_step=2, env_sessions=4,
                  valid_action_bonus=0.5)  # fmt: skip


@pytest.fixture
def plain(config):
    """A configuration that trains without evaluations."""
    return config.replace(eval_episodes=0)


def summary(config):
    return json.loads((config.folder / "summary.json").read_text())


def has_adapter(config):
    return (config.folder / "adapter" / "adapter_model.safetensors").is_file()


def broken_evaluation(monkeypatch, *names, error=EnvError):
    evaluate = Report.evaluate

    async def fail(self, agents):
        for name in agents:
            if name in names:
                raise error(f"of {name}")
        await evaluate(self, agents)

    monkeypatch.setattr(Report, "evaluate", fail)


def test_a_blind_evaluation_that_fails_costs_itself(config, monkeypatch, capsys):
    broken_evaluation(monkeypatch, "blind")
    with pytest.raises(EnvError, match="of blind"):
        grpo.train(config, ScriptedEnv)
    assert has_adapter(config)
    rates = summary(config)
    assert (rates["steps"], "blind" in rates) == (2, False)
    assert rates["trained"]["sampled"]["n"] == 2
    assert (config.folder / "media" / "index.html").is_file()
    out = capsys.readouterr().out
    assert "the blind evaluation failed: of blind" in out
    assert "success on 2 held-out seeds per task" in out


@pytest.mark.parametrize("error", [EnvError, OSError, KeyError, RuntimeError])
def test_evaluations_that_fail_cost_no_weights(config, monkeypatch, error):
    broken_evaluation(monkeypatch, "blind", "trained", error=error)
    with pytest.raises(error, match="of blind"):
        grpo.train(config, ScriptedEnv)
    assert has_adapter(config)
    assert summary(config)["steps"] == 2


def test_a_last_checkpoint_that_cannot_be_written_costs_itself(config, caplog):
    config = config.replace(save_every=0)
    config.folder.mkdir()

    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            (config.folder / "checkpoints").touch()  # where a folder is to be
            return await super().reset(task, **options)

    with pytest.raises(OSError, match="checkpoints"):
        grpo.train(config, Env)
    assert has_adapter(config)
    assert summary(config)["trained"]["sampled"]["n"] == 2
    assert (config.folder / "curves.png").is_file()
    assert "the checkpoint of step 2 could not be saved" in caplog.text


def test_weights_that_cannot_be_written_cost_themselves(config, caplog):
    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            (config.folder / "adapter.tmp" / "x").mkdir(parents=True, exist_ok=True)
            (config.folder / "adapter").touch()
            return await super().reset(task, **options)

    original = grpo.LoRAPolicy.save

    def fail(self, folder):
        if folder.parent == config.folder:
            raise OSError(28, "no space left", str(folder))
        original(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpo.LoRAPolicy, "save", fail)
        with pytest.raises(OSError, match="no space left"):
            grpo.train(config, Env)
    assert "the trained weights could not be saved" in caplog.text
    assert [path.name for path in checkpoints(config.folder)] == ["step-000002"]
    assert summary(config)["trained"]["sampled"]["n"] == 2


def test_curves_and_uploads_that_fail_come_after_the_rest(plain, monkeypatch, capsys):
    pushed = []

    def push(folder, name):
        pushed.append(name)
        raise HubError("the upload failed")

    monkeypatch.setattr("grpo.reporting.hub.check_access", lambda _: None)
    monkeypatch.setattr("grpo.reporting.report.push_to_hub", push)

    def draw(*_, **__):
        raise ValueError("no font")

    monkeypatch.setattr("grpo.reporting.report.plot_curves", draw)
    with pytest.raises(ValueError, match="no font"):
        grpo.train(plain.replace(push_to_hub="user/clicks"), ScriptedEnv)
    assert (pushed, has_adapter(plain)) == (["user/clicks"], True)
    out = capsys.readouterr().out
    assert "drawing curves.png failed: no font" in out
    assert "the upload failed: the upload failed" in out
    assert "success while training" in out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
def test_a_disk_that_is_full_for_a_while_costs_no_metrics(tmp_path, full_disk):
    """The lines are written later; what cannot be written is named with its path."""
    log, path = MetricsLog(tmp_path, run="abc"), tmp_path / "metrics.jsonl"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in (1, 2, 3, 4, 5):
            full_disk(path.stat().st_size + 20 if step in (3, 4) else -1)  # in the middle of a line
            log.log(step, {"reward": step / 10})
            found = [line["step"] for line in read_metrics(path, "abc")]
            assert found == list(range(1, 3 if step in (3, 4) else step + 1))
        log.close()
    assert path.read_text().count("\n") == 5
    messages = [str(w.message) for w in caught]
    assert sum(f"cannot write {path}: " in message for message in messages) == 2


@pytest.mark.parametrize("content", [b"", b"\xff{"])
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "completions.txt", "run.json"])
def test_files_that_a_kill_has_cut_off_do_not_stop_a_resumed_run(plain, name, content):
    grpo.train(plain, ScriptedEnv)
    (plain.folder / name).write_bytes(content)
    result = grpo.train(plain.replace(steps=3, resume=True), ScriptedEnv)
    assert result.summary["steps"] == 3
    assert result.metrics[-1]["step"] == 3
    assert json.loads((plain.folder / name).read_text()) if name == "summary.json" else True


def test_every_file_names_its_run(plain):
    grpo.train(plain, ScriptedEnv)
    run = run_id(plain.folder)
    assert len(run) == 12
    assert summary(plain)["run"] == run
    assert (plain.folder / "config.yaml").read_text().startswith(f"# run {run}\n")
    saved = Config.from_yaml(plain.folder / "config.yaml")
    assert saved.replace(dtype="auto") == plain
    lines = (plain.folder / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["run"] for line in lines} == {run}
    manifest = json.loads((checkpoints(plain.folder)[0] / "manifest.json").read_text())
    assert manifest["run"] == run
    resumed = grpo.train(plain.replace(steps=3, resume=True), ScriptedEnv)
    assert [line["step"] for line in resumed.metrics] == [1, 2, 3]
    assert run_id(plain.folder) == run


def test_a_repeated_run_sets_the_finished_one_aside_and_says_so(config, capsys):
    grpo.train(config, ScriptedEnv)
    run, weights = run_id(config.folder), (config.folder / "adapter" / "adapter_model.safetensors")
    before = weights.read_bytes()
    capsys.readouterr()
    grpo.train(config.replace(seed=3, steps=1), ScriptedEnv)
    earlier = config.folder / "earlier" / run
    assert f"the earlier run in {config.folder} is now in {earlier}" in capsys.readouterr().out
    assert (earlier / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert len(read_metrics(earlier / "metrics.jsonl")) == 2
    assert [path.name for path in checkpoints(earlier)] == ["step-000002"]
    assert [path.name for path in checkpoints(config.folder)] == ["step-000001"]
    assert summary(config)["steps"] == 1


def test_a_new_run_that_ended_before_its_first_checkpoint_is_begun_again(config):
    grpo.train(config, ScriptedEnv)
    with pytest.raises(EnvError):
        grpo.train(config.replace(seed=3), lambda: ScriptedEnv(fail_at=1))
    result = grpo.train(config.replace(seed=3, resume=True), ScriptedEnv)
    assert [line["step"] for line in result.metrics] == [1, 2]
    assert result.summary["steps"] == 2


def test_a_warm_start_is_not_repeated_by_a_resumed_run(config, monkeypatch):
    config = config.replace(warm_start_steps=1)
    play = WarmStart._episodes

    async def play_slowly(self):
        await asyncio.sleep(0.2)
        return await play(self)

    monkeypatch.setattr(WarmStart, "_episodes", play_slowly)

    class Env(ScriptedEnv):
        async def step(self, text):
            summary = config.folder / "summary.json"
            if summary.is_file() and "warm_started" in json.loads(summary.read_text()):
                raise EnvError("it is gone")
            return await super().step(text)

    with pytest.raises(EnvError, match="no group of the step survived"):
        grpo.train(config, Env)
    before = summary(config)
    result = grpo.train(config.replace(resume=True), ScriptedEnv)
    assert result.summary["untrained"] == before["untrained"]
    assert result.summary["warm_started"] == before["warm_started"]
    assert result.summary["seconds"]["imitation"] >= 0.2  # of the run that imitated
    assert result.summary["seconds"]["setup"] >= 0
    assert result.summary["steps"] == 2


@pytest.fixture
def written():
    """The files that this process opens to write, as Python tells its audit hooks."""
    paths: list[Path] = []
    watching = True

    def watch(event, arguments):  # cannot be removed
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if watching and writes and isinstance(arguments[0], str | os.PathLike):
            paths.append(Path(os.fspath(arguments[0])))

    sys.addaudithook(watch)
    yield paths
    watching = False


def test_no_file_of_a_run_is_written_in_place(config, written, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    grpo.train(config, ScriptedEnv)
    grpo.train(config.replace(steps=3, resume=True), ScriptedEnv)
    with pytest.raises(HubError):
        push_to_hub(config.folder, "user/name")
    parts = [path.relative_to(config.folder).parts for path in written
             if path.is_relative_to(config.folder) and "tensorboard" not in path.parts]  # fmt: skip
    in_place = {"/".join(each) for each in parts if not any(".tmp" in part for part in each)}
    # The first two are appended to, all or nothing.
    assert in_place == {"metrics.jsonl", "completions.txt", "run.lock"}
    assert {name for each in parts for name in each} >= {"index.tmp.html", "README.tmp.md"}


def test_two_runs_at_once_are_one_and_an_error(plain):
    with locked(plain.folder), pytest.raises(ConfigError, match="another run is writing to"):
        grpo.train(plain, ScriptedEnv)
    grpo.train(plain, ScriptedEnv)
    assert not (plain.folder / "run.lock").exists()


async def test_an_interrupt_at_any_moment_of_a_notebook_cell(plain, monkeypatch):
    """Also while the program's thread is started, where nobody waits for its result yet."""
    from concurrent.futures import ThreadPoolExecutor

    submit, started = ThreadPoolExecutor.submit, threading.Event()

    def interrupted(self, function, *args, **options):
        if not started.is_set():
            started.set()
            os.kill(os.getpid(), signal.SIGINT)
        return submit(self, function, *args, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Stopped, match="SIGINT"):
            grpo.train(plain.replace(steps=50), ScriptedEnv)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
