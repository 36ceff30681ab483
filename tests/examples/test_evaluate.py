"""The evaluation as a user starts it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from grpo.config import Config, ConfigError
from grpo.rollouts.task_sampler import HELD_OUT

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "evaluate.py"


@pytest.fixture
def read_config(monkeypatch):
    """A function: the configuration that the program makes of its arguments."""
    spec = importlib.util.spec_from_file_location("evaluate_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def read(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        return module.read_config()

    return read


@pytest.fixture
def finished(tmp_path):
    """The folder of a run, without what it learned."""
    config = Config(task="click-button", model="some/model", output="elsewhere", max_turns=3,
                    lora_r=4, max_prompt_tokens=99, temperature=0.7, adapter="started/from",
                    eval_episodes=7)  # fmt: skip
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return tmp_path


def test_without_an_adapter_it_is_the_tasks_own_configuration(read_config):
    config = read_config("--task", "click-test", "--episodes", "9")
    assert (config.task, config.adapter, config.eval_episodes) == ("click-test", "", 9)
    assert config.max_turns == 1  # of examples/configs/click-test.yaml
    assert config.folder == Path("runs/click-test")


def test_an_adapter_is_a_folder_or_a_hub_id(read_config, tmp_path):
    for adapter in (str(tmp_path), "user/name"):
        config = read_config(f"--adapter={adapter}", "--task", "a,b")
        assert (config.adapter, config.tasks, config.model) == (adapter, ["a", "b"], "")
        assert config.folder == Path("runs/a+b")


def test_a_run_brings_its_options(read_config, finished):
    (finished / "adapter").mkdir()
    config = read_config("--adapter", finished)
    assert config.adapter == str(finished / "adapter")
    assert config.folder == finished
    options = (config.task, config.model, config.max_turns, config.lora_r, config.temperature)
    assert options == ("click-button", "some/model", 3, 4, 0.7)
    assert (config.max_prompt_tokens, config.eval_episodes) == (99, 7)
    other = finished / "other"
    given = ("--max-turns", "5", "--task", "click-link", "--episodes", "2", "--output", other)
    config = read_config("--adapter", finished, *given)
    assert (config.max_turns, config.task, config.eval_episodes) == (5, "click-link", 2)
    assert (config.folder, config.temperature) == (other, 0.7)


def test_a_run_that_trained_every_weight(read_config, finished):
    (finished / "model").mkdir()
    config = read_config("--adapter", finished)
    assert (config.model, config.adapter) == (str(finished / "model"), "")
    assert config.folder == finished


def test_a_run_that_has_not_ended(read_config, finished):
    with pytest.raises(ConfigError, match=rf"expected adapter/ or model/ in {finished}: has the"):
        read_config("--adapter", finished)


@pytest.mark.browser
@pytest.mark.model
def test_an_evaluation_of_a_run_leaves_what_it_promises(tmp_path):
    config = Config(max_new_tokens=8, max_turns=2, blind=False)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    weights = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": zeros
        for layer in range(30)
        for name, zeros in (("A", torch.zeros(1, 576)), ("B", torch.zeros(576, 1)))
    }
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--adapter", str(tmp_path), "--episodes", "2",
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
    assert list(result["per_task"]["click-test"]) == ["random", "policy"]
    assert result["random"]["sampled"]["success"] == 1.0  # one button, one action
    assert result["policy"]["greedy"]["n"] == 2
    assert 1 <= result["policy"]["sampled"]["steps"] <= 2
    folder = tmp_path / "media" / "evaluation" / "click-test"
    assert {path.name for path in folder.iterdir()} == {str(HELD_OUT), str(HELD_OUT + 1)}
    for episode in folder.iterdir():
        pages = len(json.loads((episode / "episode.json").read_text())["pages"])
        pictures = {f"{k}.png" for k in range(pages)}
        assert {path.name for path in episode.iterdir()} == {*pictures, "episode.json"}
    html = (tmp_path / "media" / "index.html").read_text()
    assert html.count("data:image/png") == len(list(folder.glob("*/*.png")))
    assert "evaluation.json, media/index.html" in done.stdout
