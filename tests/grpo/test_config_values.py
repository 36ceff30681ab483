"""Every option with values that are mistakes, from each place where options come from."""

import json
import math
from pathlib import Path
from typing import get_args, get_origin

import numpy as np
import pytest
import yaml

from grpo import task_options
from grpo.arguments import read_config
from grpo.config import Config
from grpo.errors import ConfigError

FIELDS = Config.model_fields
NUMBERS = [name for name, field in FIELDS.items() if field.annotation in (int, float)]
HUGE = [10**30, -(10**30), 10**400, 1e308, -1e308]
NOT_FINITE = [math.nan, math.inf, -math.inf]
WRONG = [
    *(None, [], {}, {"a": 1}, [1], [None], [[]], [""], ["a,b"], object(), Path("x"), b"a", 1j),
    *(np.int64(3), np.float64(math.nan), np.bool_(True), np.array([1, 2]), {1}, range(2)),
    *("", " ", " a", "a\0b", "a\nb", "\ud800", "x" * 5000, "nothing-of-the-kind", "１", "1_0"),
]
ZERO = {
    *("seed", "max_prompt_tokens", "valid_action_bonus", "sampling_threads", "steps", "minutes"),
    *(
        "vllm_memory",
        "gap_warning",
        "gap_stop",
        "max_logp_difference",
        "step_weight",
        "epsilon_low",
        "epsilon_high",
        "delta",
        "beta",
    ),
    *("max_staleness", "warm_start_steps", "imitation_epochs", "imitation_batch"),
    *("imitation_held_out", "imitation_learning_rate"),
    *("max_resamples", "warmup_steps", "max_grad_norm"),
    *("eval_episodes", "save_every", "log_completions", "gallery_every"),
}
"""Options that may be 0; no number may be negative or huge."""

TEXTS = {
    *("task_file", "model", "adapter", "output", "demonstrations", "vllm_folder", "device"),
    "prompt",
}
NAMES = {"task", "held_out_tasks", "lora_target_modules"}
EMPTY = {*("task_file", "model", "adapter", "output", "demonstrations", "push_to_hub", "prompt")}
NONE = {"held_out_tasks", "lora_target_modules", "env_url", "vllm_url"}


def is_allowed(name, value):
    """Tell whether an option may have one of the values above."""
    if name == "chat_template_kwargs":
        return isinstance(value, dict)
    if isinstance(value, bool):
        return FIELDS[name].annotation is bool
    if name in NUMBERS and type(value) in (int, float):
        return value == 0 and name in ZERO and (type(value) is int or name not in integers())
    if value in ("", []) if isinstance(value, str | list) else False:
        return name in (EMPTY | NONE if value == "" else NONE)
    if isinstance(value, str) and value in ("nothing-of-the-kind", "１", "1_0"):
        return name in TEXTS | NAMES
    if isinstance(value, str) and value in (" ", " a"):  # names are stripped
        return name in (NONE if value == " " else NAMES)
    return False


def integers():
    return {name for name, field in FIELDS.items() if field.annotation is int}


def outcome(make, name):
    """Return an option's value; None for one line that names the option."""
    try:
        return getattr(make(), name)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600
    assert name in message.replace("-", "_")
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_no_option_takes_what_is_a_mistake(name):
    for value in [*WRONG, *HUGE, *NOT_FINITE, -1, 0, 0.0, -0.5, True, False]:
        got = outcome(lambda value=value: Config(**{name: value}), name)
        assert (got is not None) == is_allowed(name, value), (value, got)
        if got is not None and isinstance(value, str | list):
            names = tuple(value) if isinstance(value, list) else (value.strip(),)
            assert got == value or got == tuple(n for n in names if n)
        elif got is not None:
            assert got == value
            assert isinstance(value, dict) or type(got) is FIELDS[name].annotation


@pytest.mark.parametrize("name", FIELDS)
def test_no_file_and_no_command_line_gives_more(name, tmp_path, monkeypatch):
    """What a file or the command line says is accepted where `Config` accepts it."""
    monkeypatch.setattr(task_options, "CONFIGS", tmp_path)
    path = tmp_path / "it.yaml"
    for value in [None, [], [1], [""], ["a,b"], "", "zzz", *HUGE, *NOT_FINITE, -1, 0, -0.5, True]:
        try:
            text = yaml.safe_dump({name: value})
        except ValueError:  # yaml's own limit
            continue
        path.write_text(text)
        got = outcome(lambda: Config.from_yaml(path), name)
        assert (got is not None) == is_allowed(name, value) or value == "zzz", (value, got)
        kind = FIELDS[name].annotation
        if value is None or isinstance(value, list) or kind is bool:
            continue
        typed = str(value)
        flag = "--" + name.replace("_", "-")
        for argv in ([flag, typed], [f"{flag}={typed}"]):
            got = outcome(lambda argv=argv: read_config(argv, prog="", description=""), name)
            if name in NUMBERS:
                assert (got is not None) == is_allowed(name, value), (argv, got)
            elif get_origin(kind) and get_args(kind)[0] is not str:
                assert got is None, (argv, got)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", "-1"),
        ("warmup_steps", "-5"),
        ("warmup_steps", "-1e-3"),
        ("beta", "-.5"),
        ("learning_rate", "-inf"),
        ("learning_rate", "-nan"),
        ("steps", "-0x1"),
        ("seed", "-1"),
        ("group_size", "9" * 5000),
    ],
)
def test_negative_numbers_of_the_command_line_reach_their_option(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"^{name} must be .*, got ") as error:
        read_config([flag, value, "--resume"], prog="", description="")
    assert len(str(error.value)) < 300


def test_a_value_that_begins_with_a_dash_is_no_number():
    with pytest.raises(ConfigError, match="unknown option --0"):
        read_config(["--steps=3", "--0"], prog="", description="")
    assert read_config(["--beta", "1e-3"], prog="", description="").beta == 1e-3


UNCHECKED = [
    lambda options: Config.model_validate(options),
    lambda options: Config.model_validate(options, strict=False),
    lambda options: Config.model_construct(**options),
    lambda options: Config().model_copy(update=options),
    lambda options: Config().copy(update=options),
    lambda options: Config().replace(**options),
    lambda options: Config.model_validate_json(json.dumps(options)),
]


@pytest.mark.parametrize("make", UNCHECKED, ids=range(len(UNCHECKED)))
def test_every_way_to_make_a_configuration_checks_it(make):
    assert make({"steps": 3}) == Config(steps=3)
    assert isinstance(make({"steps": 3}).task, tuple)
    for options in ({"steps": -1}, {"steps": "3"}, {"stepz": 3}, {"beta": None}):
        with pytest.raises(ConfigError) as error:
            make(options)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [None, 3, "steps", [1]])
def test_options_that_are_not_a_mapping(options):
    for make in (Config.model_validate, Config.from_mapping):
        with pytest.raises(ConfigError, match="must map keys to values"):
            make(options)
    with pytest.raises(ConfigError, match="not JSON"):
        Config.model_validate_json("{")


FILES = {
    "steps: 1\nsteps: 2": "'steps' appears twice",
    "steps: 1\n'steps': 2": "'steps' appears twice",
    "<<: {steps: 1}": "keys are names, got '<<'",
    "7: 4": "keys are names, got '7'",
    "true: 4": "keys are names, got 'true'",
    "? [a, b]\n: 4": "keys are names",
    "steps: !!int '3'": "tags",
    "steps: !!python/object/apply:os.getcwd []": "tags",
    "task: !!set {a}": "tags",
    "model: ! x": "tags",
    "task: &a [x]\nheld_out_tasks: *a": "anchors and aliases",
    "model: &a x": "anchors and aliases",
    "resume: on": "'on' is not read as it is written: write true or false",
    "blind: no": "'no' is not read",
    "task: No": "'No' is not read",
    "task: [a, yes]": "'yes' is not read",
    "steps: 010": "'010' is not read",
    "steps: 0x10": "'0x10' is not read",
    "steps: 1_000": "'1_000' is not read",
    "minutes: 1:30": "'1:30' is not read",
    "minutes: 1:30.5": "'1:30.5' is not read",
    "beta: 1_0.5": "'1_0.5' is not read",
    "model: 2024-01-01": "dates",
    "steps: " + "9" * 5000: "cannot read config",
    "model: " + "[" * 3000: "cannot read config",
    "a: 1\n---\nb: 2": "cannot read config",
    "steps: 1\0": "cannot read config",
    "#" * 1_000_001: "at most 1000000 bytes",
    "steps": "must map keys to values",
}


@pytest.mark.parametrize("content", FILES, ids=lambda text: text[:30])
def test_what_yaml_would_read_as_something_else(tmp_path, content):
    path = tmp_path / "it.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=FILES[content].replace("(", r"\(")) as error:
        Config.from_yaml(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_file_without_an_end():
    with pytest.raises(ConfigError, match="at most 1000000 bytes"):
        Config.from_yaml("/dev/zero")


def test_plain_yaml_is_read(tmp_path):
    path = tmp_path / "it.yaml"
    path.write_text("steps: 10\nbeta: 1.5e-3\ndelta: 2.\nlearning_rate: 1e-5\nresume: True\n"
                    "log_kl: false\nmodel: '010'\ntask: ['no', ' b ']\nseed: +3\n")  # fmt: skip
    assert Config.from_yaml(path) == Config(
        steps=10, beta=1.5e-3, delta=2.0, learning_rate=1e-5, resume=True, log_kl=False,
        model="010", task=("no", "b"), seed=3,
    )  # fmt: skip


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://a", "http://", "http://:80", "http://a:99999", "http://a:b",
     "http://[::1", "http://a b", "//a", "a", "http:/a", "http://a:0", "file:///etc/passwd"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["env_url", "vllm_url"])
def test_addresses_that_are_none(name, url):
    with pytest.raises(ConfigError, match=f"^{name} must be addresses such as http://") as error:
        Config(**{name: ["http://127.0.0.1:1", url]})
    assert repr(url) in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:secret@a:80", "http://***@a:80"),
        ("https://secret@a", "https://***@a"),
        ("http://user:sec@ret@a", "http://***@a"),
        ("http://user:sec/ret@a", "http://***@a"),
        ("user:secret@a:80", "***@a:80"),
        ("ftp://user:secret@a", "ftp://***@a"),
        ("http://user:secret@a:99999", "http://***@a:99999"),
        ("http://a/?token=secret", "http://a/?***"),
        ("a?token=secret", "a?***"),
        ("http://a/#secret", "http://a/#***"),
    ],
)
@pytest.mark.parametrize("name", ["env_url", "vllm_url"])
def test_addresses_with_a_password_in_them(name, url, shown):
    with pytest.raises(ConfigError, match=f"^{name} must be addresses ") as error:
        Config(**{name: url})
    assert str(error.value).endswith(f"got {shown!r}")


def test_addresses():
    urls = ("http://127.0.0.1:8000", "https://huggingface.co/spaces/owner/env", "http://[::1]:80/")
    assert Config(env_url=[*urls, "ws://a/b", "wss://a"]).env_url[:3] == urls
    assert Config(vllm_url=urls).vllm_url == urls
    assert Config(env_url="https://huggingface.co/spaces/owner/env?logs=build#x").env_url
    with pytest.raises(ConfigError, match=r"vllm_url must be .*\(http, https\), got 'ws://a'"):
        Config(vllm_url="ws://a")


@pytest.mark.parametrize("argv", [["--task", ""], ["--task="], ["--task", " , "], ["--config", ""]])
def test_an_empty_task_or_file_trains_nothing_else(argv):
    with pytest.raises(ConfigError, match=r"must name tasks, each once|cannot read config"):
        read_config(argv, prog="", description="")
