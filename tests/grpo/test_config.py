import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from grpo.algorithm.choices import Loss
from grpo.config import Config, unknown_option
from grpo.errors import ConfigError

LOSSES = ", ".join(get_args(Loss))

ROOT = Path(__file__).resolve().parents[2]
TASKS_ONCE = "task and held_out_tasks must name tasks, each once"


def test_yaml_round_trip(tmp_path):
    config = Config(task="click-button", learning_rate=1e-5, resume=True, beta=0.04, seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config
    assert Config.from_mapping({}) == Config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grup_size": 4}, "unknown option 'grup_size'; did you mean 'group_size'?"),
        ({"lora_rank": 4}, "unknown option 'lora_rank'; did you mean 'lora_r'?"),
        ({"zzz": 4}, "unknown option 'zzz'"),
        ({7: 4}, "unknown option '7'"),
        ({"max_steps": 4}, "'max_steps' is now called 'max_turns'"),
        ({"road": "tree"}, "'road' is now called 'forward'"),
        ({"group_size": "8"}, "group_size must be an integer, got '8'"),
        ({"group_size": 8.0}, "group_size must be an integer, got 8.0"),
        ({"group_size": True}, "group_size must be an integer, got True"),
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"beta": True}, "beta must be a number, got True"),
        ({"beta": None}, "beta must be a number, got None"),
        ({"beta": float("nan")}, "beta must be a finite number, got nan"),
        ({"beta": "inf"}, "beta must be a finite number, got inf"),
        ({"resume": 1}, "resume must be true or false, got 1"),
        ({"model": None}, "model must be a string, got None"),
        ({"model": 7}, "model must be a string, got 7"),
        ({"task": None}, "task must be a list of names, got None"),
        ({"task": 7}, "task must be a list of names, got 7"),
        ({"task": ["a", 7]}, "task must be a string, got 7"),
        ({"temperature": 0}, "temperature must be at least 0.01, got 0"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"beta": -1}, "beta must be at least 0, got -1"),
        ({"loss": "ppo"}, f"loss must be one of {LOSSES}, got 'ppo'"),
        ({"kl": "k4"}, "kl must be one of k1, k2, k3, unbiased, got 'k4'"),
        ({"train": "qlora"}, "train must be one of lora, full, got 'qlora'"),
        ({"importance": "all"}, "importance must be one of auto, none, token, sequence, got 'all'"),
        ({"max_turns": 0}, "max_turns must be at least 1, got 0"),
        ({"max_staleness": 2}, "max_staleness must be at most 1, got 2"),
        ({"importance_cap": 1}, "importance_cap must be above 1, got 1"),
        ({"credit": "gigpo"}, "credit must be one of episode, discounted, steps, got 'gigpo'"),
        ({"discount": 0}, "discount must be above 0, got 0"),
        ({"discount": 1.5}, "discount must be at most 1, got 1.5"),
        ({"step_weight": -1}, "step_weight must be at least 0, got -1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1, got 0"),
        ({"task": ""}, f"{TASKS_ONCE}, got [] and []"),
        ({"task": "a, a"}, f"{TASKS_ONCE}, got ['a', 'a'] and []"),
        ({"task": ["a"], "held_out_tasks": "b,a"}, f"{TASKS_ONCE}, got ['a'] and ['b', 'a']"),
        ({"push_to_hub": "clicks"}, "push_to_hub must be a hub id, user/name, got 'clicks'"),
    ],
)  # fmt: skip
def test_what_is_rejected(options, message):
    for source in ("config", "my.yaml"):
        with pytest.raises(ConfigError) as error:
            Config.from_mapping(options, source)
        assert str(error.value) == f"{source}: {message}"
    with pytest.raises(ConfigError) as error:
        Config(**{str(name): value for name, value in options.items()})
    assert str(error.value) == message


def test_one_line_however_long_the_value():
    with pytest.raises(ConfigError) as error:
        Config(loss="a\nb")
    assert str(error.value) == f"loss must be one of {LOSSES}, got 'a\\nb'"


@pytest.mark.parametrize(("value", "beta"), [(1, 1.0), ("1e-5", 1e-5)])  # YAML: 1e-5 is a text
def test_numbers_that_yaml_does_not_read_as_floats(value, beta):
    got = Config.from_mapping({"beta": value}).beta
    assert (got, type(got)) == (beta, float)


@pytest.mark.parametrize("options", [{"delta": 1.2}, {"delta": 4.0, "loss": "cispo"}])
def test_a_delta_that_clips_nothing_is_rejected(options):
    with pytest.raises(ConfigError, match="delta must be above 1 \\+ epsilon_high"):
        Config(**options)
    assert Config(delta=1.3).delta == 1.3


def test_full_training_has_no_adapter():
    with pytest.raises(ConfigError, match="adapter must be empty with train=full, got 'runs/a'"):
        Config(train="full", adapter="runs/a")


NAMES = {"task": ("a", "b"), "env_url": ("http://one", "http://two")}


@pytest.mark.parametrize(
    "options",
    [
        {"task": "a,b", "env_url": "http://one,http://two"},
        {"task": " a , b,", "env_url": "http://one, http://two"},
        {"task": ["a", "b"], "env_url": ["http://one", "http://two"]},
        NAMES,
    ],
    ids=str,
)
def test_names_are_a_list_or_a_text_with_commas(options):
    config = Config(**options)
    assert (config.task, config.env_url) == (NAMES["task"], NAMES["env_url"])
    assert hash(config.task)  # a tuple: nobody changes it


@pytest.mark.parametrize("text", ["task: [a, b]", "task: a, b", "task:\n- a\n- b"])
def test_lists_in_yaml(tmp_path, text):
    path = tmp_path / "tasks.yaml"
    path.write_text(text)
    assert Config.from_yaml(path).task == ("a", "b")
    path.write_text(Config.from_yaml(path).to_yaml())
    assert "task:\n- a\n- b\n" in path.read_text()
    assert Config.from_yaml(path) == Config(task="a,b")


def test_a_copy_is_checked_again():
    config = Config(seed=3)
    assert config.replace(steps=7, task="a, b") == Config(seed=3, steps=7, task=("a", "b"))
    assert config.replace() == config != config.replace(seed=4)
    with pytest.raises(ConfigError, match="steps must be at least 0, got -1"):
        config.replace(steps=-1)
    with pytest.raises(ConfigError, match="delta must be above"):
        config.replace(delta=1.1)
    with pytest.raises(ConfigError, match="unknown option 'stepz'; did you mean 'steps'"):
        config.replace(stepz=3)


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().steps = 3


def test_evaluated_tasks():
    assert Config(task="a,b", held_out_tasks="c").evaluated_tasks == ["a", "b", "c"]


def test_the_level_of_importance_weights():
    assert Config().importance_level == "none"
    assert Config(backend="vllm").importance_level == "token"
    assert Config(max_staleness=1).importance_level == "token"
    assert Config(importance="sequence").importance_level == "sequence"
    assert Config(backend="vllm", importance="none").importance_level == "none"


def test_the_reference_is_used_for_a_penalty_or_a_measurement():
    assert Config(log_kl=False, beta=0.1).uses_reference
    assert Config().uses_reference
    assert not Config(log_kl=False).uses_reference


def test_what_a_resumed_run_may_change():
    """Where and for how long it goes on, what is evaluated and shown; not what is learned."""
    assert Config.resumable() == {
        *("held_out_tasks", "task_file", "adapter", "output"),
        *("groups_per_step", "imitation_batch", "steps", "minutes"),
        *("cache_tokens", "sampling_threads", "vllm_memory", "vllm_sleep", "vllm_sync"),
        *(
            "vllm_url",
            "vllm_folder",
            "vllm_deadline",
            "max_logp_difference",
            "gap_warning",
            "gap_stop",
        ),
        *("env_url", "env_workers", "env_sessions", "env_deadline", "share_episodes"),
        "max_bad_updates",
        *("device", "activation_checkpointing", "cuda_graphs", "max_tokens_per_microbatch"),
        *("eval_episodes", "blind", "save_every", "keep_checkpoints", "logger"),
        *("log_completions", "gallery_every", "push_to_hub", "resume"),
    }


@pytest.mark.parametrize(
    "content", ["", "- 1", "steps: [", "a: b: c", "\tsteps: 1", b"\xff\xfe\xfa"]
)
def test_a_file_that_is_not_a_mapping(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"broken\.yaml") as error:
        Config.from_yaml(path)
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="cannot read config"):
        Config.from_yaml(tmp_path / "none.yaml")


def test_the_error_of_a_file_names_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("max_steps: 4\n")
    with pytest.raises(ConfigError) as error:
        Config.from_yaml(path)
    assert str(error.value) == f"{path}: 'max_steps' is now called 'max_turns'"


def test_names_are_spelled_as_they_are_given():
    def spell(name):
        return "--" + name.replace("_", "-")

    assert (
        unknown_option("grup_size", spell=spell)
        == "unknown option --grup-size; did you mean --group-size?"
    )
    assert unknown_option("max_steps", spell=spell) == "--max-steps is now called --max-turns"
    typed = unknown_option("grup_size", typed="--grup_size", spell=spell)
    assert typed == "unknown option --grup_size; did you mean --group-size?"


def test_a_renamed_value():
    message = "got 'middling', which is now called learnability"
    with pytest.raises(ConfigError, match=message):
        Config(task_sampler="middling")


def test_a_key_named_self():
    with pytest.raises(ConfigError, match="unknown option 'self'"):
        Config.from_mapping({"self": 1})


def test_folder():
    assert str(Config().folder) == "runs/click-test"
    assert str(Config(task="a,b").folder) == "runs/a+b"
    assert str(Config(output="somewhere").folder) == "somewhere"


def test_reading_a_configuration_loads_neither_torch_nor_transformers():
    program = "import sys, grpo.config; print({'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "t0"),
        (4, "t0, t1, t2, t3"),
        (5, "t0, t1, t2, and 2 more"),
        (112, "t0, t1, t2, and 109 more"),
    ],
)
def test_many_tasks_are_three_names_and_a_number(count, words):
    assert Config(task=[f"t{i}" for i in range(count)]).task_in_words == words
