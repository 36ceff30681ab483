"""The option `chat_template_kwargs`: a mapping in YAML and in Python, JSON on the command line."""

import copy
import pickle

import pytest

from grpo.arguments import read_config
from grpo.config import Config
from grpo.errors import ConfigError


def read(*argv):
    return read_config(argv, prog="grpo train", description="")


def test_the_ways_to_give_it(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("chat_template_kwargs:\n  enable_thinking: false\n  date_string: 26 Jul 2024\n")
    wanted = {"enable_thinking": False, "date_string": "26 Jul 2024"}
    assert Config().chat_template_kwargs == {}
    assert Config.from_yaml(path).chat_template_kwargs == wanted
    assert read("--config", str(path)).chat_template_kwargs == wanted
    given = '{"enable_thinking": true}'
    config = read("--config", str(path), "--chat-template-kwargs", given)
    assert config.chat_template_kwargs == {"enable_thinking": True}
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config
    assert "chat_template_kwargs" not in Config.resumable()


def test_it_is_a_copy_that_cannot_be_changed():
    given = {"tools": [1]}
    config = Config(chat_template_kwargs=given)
    given["tools"].append(2)
    options = config.chat_template_kwargs
    assert options == {"tools": [1]}
    for change in (
        lambda: options.update(a=1),
        lambda: options.pop("tools"),
        lambda: options.setdefault("a", 1),
        lambda: options.__setitem__("a", 1),
        lambda: options.__ior__({"a": 1}),
        options.clear,
        options.popitem,
    ):
        with pytest.raises(TypeError, match=r"use Config\.replace"):
            change()
    assert config.replace(seed=1).chat_template_kwargs == options == {"tools": [1]}
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(Config(chat_template_kwargs={"tools": [1]}))
    assert config.model_dump(mode="json")["chat_template_kwargs"] == {"tools": [1]}


@pytest.mark.parametrize(
    "value",
    ["", "{", "[1]", "3", "null", '{"a": NaN}', [1], 3, None, {1: 2}, {"a": float("inf")},
     {"a": object()}, {"a": {1, 2}}, "[" * 100_000],
)  # fmt: skip
def test_other_values_are_one_line(value):
    with pytest.raises(ConfigError, match="chat_template_kwargs must be a JSON object") as error:
        Config(chat_template_kwargs=value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250
    if isinstance(value, str) and len(value) < 20:
        with pytest.raises(ConfigError, match="must be a JSON object such as"):
            read("--chat-template-kwargs", value)
