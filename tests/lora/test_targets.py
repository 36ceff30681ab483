"""Module names that lists and regular expressions choose."""

import pytest

from lora import targets
from lora.targets import in_layers, matches, matching

LAYERS = [f"model.layers.{i}" for i in range(12)]
NAMES = [f"{layer}.self_attn.{p}_proj" for layer in LAYERS for p in "qv"]
NAMES += ["model.layers.1.experts.0.w1", "model.layers.0.experts.1.w1", "h.1.fc", "lm_head"]


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("a.q_proj", "q_proj", True),
        ("q_proj", "q_proj", True),
        ("a.b.q_proj", "b.q_proj", True),
        ("a.q_proj", "_proj", False),
        ("a.q_proj.b", "q_proj", False),
        ("a.q_proj", "", False),
    ],
)
def test_matches(name, target, expected):
    assert matches(name, target) is expected


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (["q_proj"], 12),
        (["layers.1.self_attn.q_proj", "v_proj", "not_there"], 13),
        ([], 0),
        (r".*\.q_proj", 12),
        (r"q_proj", 0),  # the whole name must match
        (r".*(?P<idx>\.q_proj)?", 28),
        (r"model\.layers\.1\..*", 3),
        ("", 0),
    ],
)
def test_names_and_regular_expressions(wanted, count):
    found = matching(wanted, NAMES)
    assert len(found) == count
    assert found <= set(NAMES)


@pytest.mark.parametrize(
    ("layers", "patterns", "names"),
    [
        # The first number counts, not the number of an expert.
        ([1], [], ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj",
                   "model.layers.1.experts.0.w1"]),
        ([1], ["h"], ["h.1.fc"]),
        ([0], ["h", "experts"], ["model.layers.1.experts.0.w1"]),
        ([11], ["layers", "h"], ["model.layers.11.self_attn.q_proj",
                                 "model.layers.11.self_attn.v_proj"]),
        ([1], ["h|nothing"], []),
        ([12], ["layers"], []),
    ],
)  # fmt: skip
def test_layers_by_number(layers, patterns, names):
    assert in_layers(NAMES, layers, patterns) == set(names)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "missing ), unterminated subpattern"),
        ("*_proj", "nothing to repeat"),
        ("a{99999999999}", "the repetition number is too large"),
        ("(" * 5000 + ")" * 5000, "recursion"),
        ("(?P<x>a)(?P<x>b)", "redefinition of group name"),
        ("[é", "unterminated character set"),
    ],
)
def test_what_is_no_regular_expression(pattern, reason):
    with pytest.raises(ValueError, match=r"^is not a regular expression") as caught:
        matching(pattern, NAMES)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_pattern_of_layers():
    with pytest.raises(ValueError, match=r"^is not a regular expression .*unbalanced parenthesis"):
        in_layers(NAMES, [1], ["layers", "h)"])


@pytest.mark.parametrize("pattern", [r"([a-z_.0-9]+)+\$", r"(.*)*\1(.*)*x\1$", r"(a|[a-z.]|.)*!"])
def test_a_regular_expression_that_would_run_for_ever(pattern, monkeypatch):
    monkeypatch.setattr(targets, "PATTERN_SECONDS", 1.0)
    with pytest.raises(ValueError, match=r"takes more than 1 s to match the names"):
        matching(pattern, ["model.layers.0.self_attn.q_proj" * 3])
