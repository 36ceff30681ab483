from dataclasses import fields, replace

import pytest

from grpo.algorithm.credit import CreditRule
from grpo.config import Config, ConfigError


def test_yaml_round_trip(tmp_path):
    config = Config(task="click-button", learning_rate=1e-5, resume=True, beta=0.04, seed=3)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert Config.from_yaml(path) == config
    assert Config.from_mapping({}) == Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grup_size": 4}, "unknown key 'grup_size' in config; did you mean 'group_size'?"),
        ({"lora_rank": 4}, "unknown key 'lora_rank' in config; did you mean 'lora_r'?"),
        ({"zzz": 4}, "unknown key 'zzz' in config"),
        ({7: 4}, "unknown key 7 in config"),
        ({"group_size": "8"}, "group_size in config must be int, got '8'"),
        ({"group_size": 8.0}, "group_size in config must be int, got 8.0"),
        ({"group_size": True}, "group_size in config must be int, got True"),
        ({"beta": True}, "beta in config must be float, got True"),
        ({"resume": 1}, "resume in config must be bool, got 1"),
        ({"task": None}, "task in config must be str, got None"),
        ({"temperature": 0}, "temperature must be above 0, got 0.0"),
        ({"learning_rate": "fast"}, "learning_rate in config must be float, got 'fast'"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0.0"),
        ({"beta": -1}, "beta must not be negative, got -1.0"),
        ({"loss": "ppo"}, "loss must be one of grpo, gspo, cispo, got 'ppo'"),
        ({"kl": "k4"}, "kl must be one of k1, k2, k3, unbiased, got 'k4'"),
        ({"max_turns": 0}, "max_turns must be at least 1, got 0"),
        ({"credit": "gigpo"}, "credit must be one of episode, discounted, steps, got 'gigpo'"),
        ({"discount": 0}, "discount must be above 0 and at most 1, got 0.0"),
        ({"discount": 1.5}, "discount must be above 0 and at most 1, got 1.5"),
        ({"step_weight": -1}, "step_weight must not be negative, got -1.0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_is_refused(values, message):
    with pytest.raises(ConfigError) as error:
        Config.from_mapping(values)
    assert str(error.value) == message


def test_a_group_of_one():
    with pytest.raises(ConfigError, match="group_size must be at least 2, got 1: advantages"):
        Config(group_size=1)


@pytest.mark.parametrize(("value", "beta"), [(1, 1.0), ("1e-5", 1e-5)])  # YAML: 1e-5 is a text
def test_numbers_that_are_no_floats_in_yaml(value, beta):
    got = Config.from_mapping({"beta": value}).beta
    assert (got, type(got)) == (beta, float)


@pytest.mark.parametrize("values", [{"delta": 1.2}, {"delta": 4.0, "loss": "cispo"}])
def test_a_delta_that_clips_nothing_is_refused(values):
    with pytest.raises(ConfigError, match="delta must be above 1 \\+ epsilon_high"):
        Config(**values)


@pytest.mark.parametrize(
    "content", ["", "- 1", "steps: [", "a: b: c", "\tsteps: 1", b"\xff\xfe\xfa"]
)
def test_a_file_that_is_no_mapping(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"broken\.yaml") as error:
        Config.from_yaml(path)
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read config"):
        Config.from_yaml(tmp_path / "none.yaml")


@pytest.fixture
def read(tmp_path):
    (tmp_path / "click-test.yaml").write_text("task: click-test\nsteps: 11\nseed: 12\n")
    (tmp_path / "other.yaml").write_text("steps: 21\nlora_r: 4\n")

    def read(*argv):
        argv = [arg.replace("FOLDER", str(tmp_path)) for arg in argv]
        return Config.from_command_line(argv, description="", configs=tmp_path)

    return read


def test_command_line_over_yaml_over_the_tasks_own_file(read):
    assert read() == Config(steps=11, seed=12)
    assert read("--steps", "31") == Config(steps=31, seed=12)
    assert read("--config", "FOLDER/other.yaml") == Config(steps=21, lora_r=4)
    assert read("--config", "FOLDER/other.yaml", "--lora-r", "2") == Config(steps=21, lora_r=2)
    assert read("--task", "click-link") == Config(task="click-link")
    assert read("--beta", "0", "--resume").resume


def test_every_field_is_an_option_with_help(read, capsys):
    with pytest.raises(SystemExit) as done:
        read("--help")
    assert done.value.code == 0
    shown = capsys.readouterr().out
    for field in fields(Config):
        assert "--" + field.name.replace("_", "-") in shown


def test_credit_is_a_rule(read):
    assert read().credit_rule == CreditRule()
    rule = read("--credit", "steps", "--discount", "0.9", "--step-weight", "0.5").credit_rule
    assert rule == CreditRule("steps", 0.9, 0.5)


def test_options_of_every_type(read):
    for name, text, value in (("seed", "5", 5), ("beta", "0.1", 0.1), ("loss", "gspo", "gspo")):
        assert read(f"--{name}", text) == replace(read(), **{name: value})


@pytest.mark.parametrize(
    "argv", [["--loss", "ppo"], ["--steps", "many"], ["--no-such-option"], ["--steps"]]
)
def test_what_argparse_refuses(read, argv, capsys):
    with pytest.raises(SystemExit) as done:
        read(*argv)
    assert done.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_the_command_line_is_checked_too(read):
    with pytest.raises(ConfigError, match="group_size must be at least 2, got 1"):
        read("--group-size", "1")


def test_folder():
    assert str(Config().folder) == "runs/click-test"
    assert str(Config(output="somewhere").folder) == "somewhere"
