"""The evaluation as a user starts it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import grpo.run
from grpo.config import Config
from grpo.rollouts.task_sampler import HELD_OUT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "evaluate.py"


@pytest.fixture
def start(monkeypatch):
    """Return a function: start the program, and return its exit code and its configuration."""
    configs = []
    monkeypatch.setattr(grpo.run, "evaluate", lambda config, env, **_: configs.append(config))

    def start(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return ended.value.code, configs.pop() if configs else None

    return start


@pytest.fixture
def read_config(start):
    """Return a function: the configuration that the program makes of its arguments."""

    def read(*arguments):
        code, config = start(*arguments)
        assert code == 0
        return config

    return read


@pytest.fixture
def run_folder(tmp_path):
    """Return the folder of a run, without trained weights."""
    config = Config(task="click-button", model="some/model", output="elsewhere", max_turns=3,
                    lora_r=4, max_prompt_tokens=99, temperature=0.7, adapter="started/from",
                    eval_episodes=7)  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return tmp_path


def test_without_an_adapter_it_reads_the_tasks_own_configuration(read_config):
    config = read_config("--task", "click-test", "--eval-episodes", "9")
    assert (config.task, config.adapter, config.eval_episodes) == (("click-test",), "", 9)
    assert config.max_turns == 1  # of grpo/configs/click-test.yaml
    assert config.folder == Path("runs/click-test")


def test_an_adapter_is_a_folder_or_a_hub_id(read_config, tmp_path):
    for adapter in (str(tmp_path), "user/name"):
        config = read_config(f"--adapter={adapter}", "--task", "click-link,click-tab")
        names = ("click-link", "click-tab")
        assert (config.adapter, config.task, config.model) == (adapter, names, "")
        assert config.folder == Path("runs/click-link+click-tab")


def test_options_of_the_run_are_the_defaults(read_config, run_folder):
    (run_folder / "adapter").mkdir()
    config = read_config("--adapter", run_folder)
    assert config.adapter == str(run_folder / "adapter")
    assert config.folder == run_folder
    options = (config.task, config.model, config.max_turns, config.lora_r, config.temperature)
    assert options == (("click-button",), "some/model", 3, 4, 0.7)
    assert (config.max_prompt_tokens, config.eval_episodes) == (99, 7)
    other = run_folder / "other"
    given = ("--max-turns", "5", "--task", "click-link", "--eval-episodes", "2", "--output", other)
    config = read_config("--adapter", run_folder, *given)
    assert (config.max_turns, config.task, config.eval_episodes) == (5, ("click-link",), 2)
    assert (config.folder, config.temperature) == (other, 0.7)


def test_a_run_that_trained_every_weight(read_config, run_folder):
    (run_folder / "model").mkdir()
    config = read_config("--adapter", run_folder)
    assert (config.model, config.adapter) == (str(run_folder / "model"), "")
    assert config.folder == run_folder


def test_a_run_that_has_not_finished(start, run_folder, capsys):
    assert start("--adapter", run_folder) == (2, None)
    expected = f"error: expected adapter/ or model/ in {run_folder}: has the run finished?\n"
    assert capsys.readouterr().err == expected


@pytest.mark.browser
@pytest.mark.model
def test_an_evaluation_of_a_run_leaves_the_promised_files(tmp_path, tiny_path):
    config = Config(model=tiny_path, max_new_tokens=8, max_turns=2, blind=False)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": zeros
        for layer in range(2)
        for name, zeros in (("A", torch.zeros(1, 32)), ("B", torch.zeros(32, 1)))
    }
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--adapter", str(tmp_path), "--eval-episodes", "2",
         "--env-workers", "1", "--env-sessions", "4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["adapter"] == str(tmp_path / "adapter")
    assert result["max_turns"] == 2
    assert list(result["per_task"]["click-test"]) == ["random", "policy"]
    assert result["random"]["sampled"]["success"] == 1.0  # one button, one action
    assert result["policy"]["greedy"]["n"] == 2
    assert 1 <= result["policy"]["sampled"]["turns"] <= 2
    folder = tmp_path / "media" / "evaluation" / "click-test"
    assert {path.name for path in folder.iterdir()} == {str(HELD_OUT), str(HELD_OUT + 1)}
    for episode in folder.iterdir():
        pages = json.loads((episode / "episode.json").read_text())["pages"]
        assert "completion" in pages[0]
        pictures = {f"{k}.png" for k in range(len(pages))}
        assert {path.name for path in episode.iterdir()} == {*pictures, "episode.json"}
    html = (tmp_path / "media" / "index.html").read_text()
    assert html.count("data:image/png") == len(list(folder.glob("*/*.png")))
    assert "evaluation.json, media/index.html" in done.stdout
