"""The main job on Modal, as far as it can be checked without an account."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import modal
import pytest

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
    """Calls that would go to Modal are run here; returns what was asked of it."""
    asked = {"with_options": [], "remote": []}

    class Remote:
        def with_options(self, **options):
            asked["with_options"].append(options)
            return self

        def remote(self, *args):
            asked["remote"].append(args)
            return example_train.local(*args, folder=str(tmp_path / "volume"))

    example_train = example.train
    monkeypatch.setattr(example, "train", Remote())
    monkeypatch.chdir(tmp_path)
    return asked


def asked_of(monkeypatch, owner, name):
    """The keyword arguments that a function of Modal's is called with, and it is called."""
    calls, original = [], getattr(owner, name)

    def record(*args, **kwargs):
        calls.append((args, kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, record)
    return calls


def test_the_image_is_the_dockerfiles(monkeypatch):
    built = asked_of(monkeypatch, modal.Image, "from_dockerfile")
    added = asked_of(monkeypatch, modal.Image, "dockerfile_commands")
    started = asked_of(monkeypatch, modal.Image, "entrypoint")
    example = load()
    ((path,), options), = built  # fmt: skip
    text = path.read_text()
    assert path == ROOT / "Dockerfile"
    assert options["context_dir"] == ROOT
    assert options["build_args"] == {"DEVICE": "cuda"}
    assert re.search(r"^ARG DEVICE=", text, re.MULTILINE)
    assert f"\nWORKDIR {example.APP}\n" in text
    assert added[0][0][1:] == ("USER root",)  # after the file's own USER
    assert started[0][0][1:] == ([],)


def test_what_is_asked_of_modal(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    asked = asked_of(monkeypatch, modal.App, "function")
    load()
    ((_, options),) = asked
    assert options["gpu"] == "A100-40GB"
    assert set(options["volumes"]) == {"/cache", "/runs"}
    assert options["timeout"] == 24 * 3600
    assert options["retries"].max_retries == 3
    assert [repr(secret) for secret in options["secrets"]] == ["Secret.from_dict([HF_TOKEN])"]


def test_no_secret_is_needed(monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert repr(load().secret) == "Secret.from_dict([])"


def test_in_the_container_the_file_stands_alone(tmp_path, monkeypatch):
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


def test_a_configuration_is_found_by_its_name(example, tmp_path):
    own = ROOT / "examples" / "configs" / "lfm2_350m_lora.yaml"
    assert example.find_config(own.name) == example.find_config(own.stem) == own
    assert example.find_config(str(own)) == own
    assert example.find_config("") is None
    with pytest.raises(ValueError, match=r"one of .*click-button.yaml, .*, got 'gone.yaml'"):
        example.find_config("gone.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": "gone"}, "--config must be a file or one of"),
        ({"args": "--group-size 1"}, "group_size must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_costs(example, on_modal, options, message):
    with pytest.raises(SystemExit, match=message):
        example.main(**options)
    assert on_modal["remote"] == []


def test_the_function_resumes_and_says_whether_to_start_again(example, monkeypatch, tmp_path):
    commands, codes = [], [2, 1]

    def run_to_end(command, folder):
        commands.append((command[1:], folder))
        return codes.pop(0)

    monkeypatch.setattr(example, "run_to_end", run_to_end)
    arguments = ("name", "group_size: 4\n", ["--steps", "3"], str(tmp_path))
    assert example.train.local(*arguments) == (2, b"")  # refused: a second try would be too
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        example.train.local(*arguments)
    run = tmp_path / "name"
    words = f"examples/click_test.py --steps 3 --config {run}/asked.yaml --output {run} --resume"
    assert commands == [(words.split(), ROOT)] * 2
    assert (run / "asked.yaml").read_text() == "group_size: 4\n"


def test_an_interrupt_lets_the_run_save(example, tmp_path):
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
        example.run_to_end([sys.executable, "-c", program], tmp_path)
    thread.join()
    assert (tmp_path / "saved").exists()


@pytest.mark.browser
@pytest.mark.model
def test_a_run_comes_back(example, on_modal, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    example.main(config="click-test", args=TINY, gpu="L4", name="mine")
    back = tmp_path / "runs" / "mine"
    files = {str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()}
    assert {"summary.json", "config.yaml", "metrics.jsonl", "curves.png"} <= files
    assert {f"adapter/adapter_{name}" for name in ("config.json", "model.safetensors")} <= files
    assert not any(name.startswith("checkpoints") for name in files)
    assert json.loads((back / "summary.json").read_text())["steps"] == 1
    assert (tmp_path / "volume/mine/checkpoints/step-000001/trainer.pt").is_file()
    assert on_modal["with_options"] == [{"gpu": "L4"}]
    name, text, options = on_modal["remote"][0]
    assert (name, options) == ("mine", shlex.split(TINY))
    assert "task: click-test" in text
    assert re.search(r"step +1 .*reward", capfd.readouterr().out)  # progress is shown
