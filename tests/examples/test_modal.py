"""Training on Modal, as far as it can be tested without an account."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import modal
import pytest
import yaml

from grpo.config import Config
from grpo.reporting.loggers import read_metrics
from grpo.training.checkpoint import checkpoints
from tests.support.processes import alive, descendants

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "modal_click_test.py"
TINY = "--steps 1 --group-size 2 --groups-per-step 2 --eval-episodes 0 --env-sessions 4 \
        --env-workers 1 --max-new-tokens 8 --max-turns 1"

pytestmark = pytest.mark.filterwarnings("ignore:The train function is executing locally")


def load(path=SCRIPT):
    spec = importlib.util.spec_from_file_location("modal_click_test", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example():
    return load()


@pytest.fixture
def on_modal(example, monkeypatch, tmp_path):
    """Run remote calls in this process; return their arguments."""
    calls = {"with_options": [], "remote": []}

    class Remote:
        def with_options(self, **options):
            calls["with_options"].append(options)
            return self

        def remote(self, *args, ranks):
            calls["remote"].append(args)
            return example_train.local(*args, folder=str(tmp_path / "volume"), ranks=ranks)

    example_train = example.train
    monkeypatch.setattr(example, "train", Remote())
    monkeypatch.chdir(tmp_path)
    return calls


def record_calls(monkeypatch, owner, name):
    """Record the arguments of every call of one of Modal's functions, and call it."""
    calls, original = [], getattr(owner, name)

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, record)
    return calls


def test_the_image_is_built_from_the_dockerfile(monkeypatch):
    built = record_calls(monkeypatch, modal.Image, "from_dockerfile")
    added = record_calls(monkeypatch, modal.Image, "dockerfile_commands")
    started = record_calls(monkeypatch, modal.Image, "entrypoint")
    load()
    ((path,), options), = built  # fmt: skip
    text = path.read_text()
    assert path == ROOT / "Dockerfile"
    assert options["context_dir"] == ROOT
    assert options["build_args"] == {"DEVICE": "cuda"}
    assert re.search(r"^ARG DEVICE=", text, re.MULTILINE)
    assert added[0][0][1:] == ("USER root",)  # after the file's own USER
    assert started[0][0][1:] == ([],)


def test_gpu_volumes_retries_and_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    calls = record_calls(monkeypatch, modal.App, "function")
    load()
    ((_, options),) = calls
    assert options["gpu"] == "A100-40GB"
    assert set(options["volumes"]) == {"/cache", "/runs"}
    assert options["timeout"] == 24 * 3600
    assert options["retries"].max_retries == 3
    assert [repr(secret) for secret in options["secrets"]] == ["Secret.from_dict([HF_TOKEN])"]


def test_no_secret_is_required(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert repr(load().secret) == "Secret.from_dict([])"


def test_the_file_can_be_loaded_without_the_checkout_and_torch(tmp_path, monkeypatch):
    (tmp_path / "root").mkdir()
    copy = tmp_path / "root" / SCRIPT.name
    copy.write_text(SCRIPT.read_text())
    program = (
        f"import runpy; runpy.run_path({str(copy)!r}); import sys; print('torch' in sys.modules)"
    )
    ask = [sys.executable, "-c", program]
    assert subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True).stdout == "False\n"


def test_modals_command_line_knows_the_options():
    ask = [sys.executable, "-m", "modal", "run", str(SCRIPT), "--help"]
    env = os.environ | {"COLUMNS": "100"}
    usage = subprocess.run(ask, capture_output=True, text=True, check=True, env=env).stdout
    assert set(re.findall(r"--[a-z-]+ TEXT", usage)) >= {
        f"--{name} TEXT" for name in ("config", "args", "env-url", "gpu", "name")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "gone.yaml"}, "cannot read config 'gone.yaml'"),
        ({"args": "--group-size 1"}, "group_size must be at least 2, got 1"),
        ({"args": "--episodes 3"}, "--episodes is now called --eval-episodes"),
        ({"gpu": "H100:0"}, "gpu must be a name, or a name and a number as H100:4, got 'H100:0'"),
        ({"gpu": "H100:"}, "got 'H100:'"),
    ],
)
def test_wrong_options_are_refused_before_a_gpu_is_paid_for(example, on_modal, options, message):
    with pytest.raises(SystemExit, match=message):
        example.main(**options)
    assert on_modal["remote"] == []


@pytest.mark.parametrize(
    ("gpu", "ranks"), [("H100", 1), ("A100-80GB", 1), ("H100:1", 1), ("H100:4", 4)]
)
def test_each_gpu_has_a_rank_and_its_share_of_the_machine(example, monkeypatch, gpu, ranks):
    calls = []

    class Remote:
        def with_options(self, **options):
            calls.append(options)
            return self

        def remote(self, *args, **options):
            calls.append(options)
            return 2, b""

    monkeypatch.setattr(example, "train", Remote())
    with pytest.raises(SystemExit):
        example.main(gpu=gpu)
    assert calls == [{"gpu": gpu, "cpu": 8 * ranks, "memory": 32768 * ranks}, {"ranks": ranks}]


def test_options_win_over_the_file_and_the_file_over_the_defaults(example, monkeypatch):
    calls = []

    class Remote:
        def with_options(self, **options):
            return self

        def remote(self, *args, ranks):
            calls.append(args)
            return 2, b""

    monkeypatch.setattr(example, "train", Remote())
    path = ROOT / "examples" / "configs" / "lfm2_350m_lora.yaml"
    with pytest.raises(SystemExit) as refused:
        example.main(config=str(path), args="--steps 3 --task 'a, b'", env_url="http://a:1")
    assert refused.value.code == 2
    ((name, text),) = calls
    config = Config.from_mapping(yaml.safe_load(text))
    own = {"steps": 3, "task": ("a", "b"), "env_url": ("http://a:1",)}
    assert config == Config.from_yaml(path).replace(**own)
    assert re.fullmatch(r"a\+b-\d{8}-\d{6}", name)


def test_a_run_continues_and_is_restarted_only_where_that_helps(example, monkeypatch, tmp_path):
    commands, codes = [], [2, 1]

    def run_to_end(command):
        commands.append(command[1:])
        return codes.pop(0)

    monkeypatch.setattr(example, "run_to_end", run_to_end)
    arguments = ("name", "group_size: 4\n", str(tmp_path))
    assert example.train.local(*arguments) == (2, b"")  # refused: a second try would be too
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        example.train.local(*arguments)
    run = tmp_path / "name"
    words = f"-m grpo train --config {run}/modal.yaml --output {run} --resume"
    assert commands == [words.split()] * 2
    codes.append(2)
    assert example.train.local(*arguments, ranks=4) == (2, b"")
    torchrun = "-m grpo.torchrun --standalone --nproc-per-node 4"
    assert commands[2] == f"{torchrun} {words}".split()
    assert (run / "modal.yaml").read_text() == "group_size: 4\n"


def test_an_interrupt_lets_the_run_save(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""

    def preempt():
        while not (tmp_path / "ready").exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=preempt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        example.run_to_end([sys.executable, "-c", program])
    thread.join()
    assert (tmp_path / "saved").exists()


def test_an_interrupt_lets_all_ranks_save_and_a_restart_goes_on(example, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    program = [*example.python(2), "-m", "tests.support.scripted", "--groups-per-step", "1"]
    program += ["--output", str(tmp_path)]
    log, ranks, ended = tmp_path / "metrics.jsonl", [], threading.Event()
    before = descendants(os.getpid())  # browsers of other tests

    def preempt():
        while not read_metrics(log):
            if ended.wait(0.05):
                return
        ranks.extend(set(descendants(os.getpid())) - set(before))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=preempt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            example.run_to_end([*program, "--steps", "100000"])
    finally:
        ended.set()
        thread.join()
    assert len(ranks) >= 3  # with torchrun
    assert not alive(ranks)
    saved = len(read_metrics(log))
    assert checkpoints(tmp_path)[-1].name == f"step-{saved:06d}"
    assert example.run_to_end([*program, "--steps", str(saved + 1), "--resume"]) == 0
    assert len(read_metrics(log)) == saved + 1


@pytest.mark.browser
@pytest.mark.model
def test_the_files_of_a_run_come_back(example, on_modal, tmp_path, tiny_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    example.main(args=f"{TINY} --model {tiny_path} --device cpu", gpu="L4:2", name="mine")
    back = tmp_path / "runs" / "mine"
    files = {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()}
    assert {"summary.json", "config.yaml", "metrics.jsonl", "curves.png"} <= files
    assert {f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")} <= files
    assert not any(name.startswith("checkpoints") for name in files)
    summary = json.loads((back / "summary.json").read_text())
    assert (summary["steps"], summary["episodes"]) == (1, 8)  # of both ranks
    assert (tmp_path / "volume/mine/checkpoints/step-000001/trainer.pt").is_file()
    assert on_modal["with_options"][0]["gpu"] == "L4:2"
    ((name, text),) = on_modal["remote"]
    config = Config.from_mapping(yaml.safe_load(text))
    assert (name, config.task, config.learning_rate) == ("mine", ("click-test",), 4e-4)
    assert (config.steps, config.max_new_tokens) == (1, 8)  # options win over the task's own file
    assert re.search(r"step +1 .*reward", capfd.readouterr().out)  # progress is shown
