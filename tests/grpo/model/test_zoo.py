"""Every architecture of the zoo: exact in everything that training computes, or refused.

`make test` takes the few in `HANDFUL`, `make test-zoo` all of them.
"""

import pytest
import torch

from scripts.models import PAGE, row
from tests.support.zoo import ZOO, make
from tests.support.zoo_check import check

HANDFUL = [
    *("llama", "qwen3", "granite", "lfm2"),  # the tree; a scale of the logits; convolutions
    *("qwen3_moe", "gemma2", "bamba"),  # experts; padded rows and a cap; a cache that is not right
    "bert",  # refused
]
NAMES = [name if name in HANDFUL else pytest.param(name, marks=pytest.mark.zoo) for name in ZOO]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def listed():
    """Return the rows of docs/models.md by architecture."""
    rows = [cells(line) for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0].strip("`"): row for row in rows}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_exact_or_refused(name):
    outcome = check(name)
    assert outcome.faults == []
    page, found = listed()[name], cells(row(outcome))
    # The page says how it is computed, or that it is refused; the words of a reason may change.
    assert len(page) == len(found), "refused, or no longer: run `python -m scripts.models`"
    if not outcome.refused:
        assert page[:4] == found[:4], "computed otherwise: run `python -m scripts.models`"


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
def test_peft_reads_the_adapter_as_we_do(name):
    pytest.importorskip("peft", reason="compares with PEFT, which is not installed")
    assert check(name, ["peft"]).faults == []


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_the_same_each_time_and_none_is_trivial(name):
    model, again = make(name), make(name)
    for tensor, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(tensor, same)
        assert not ((tensor == 0) | (tensor == 1)).any()


def test_the_page_lists_the_zoo():
    assert sorted(listed()) == sorted(ZOO)
    assert len(ZOO) > 100


def test_a_wrong_number_is_a_fault(monkeypatch):
    from grpo.generators.local import LocalGenerator
    from grpo.model.policy import token_logprobs

    def update(hidden, *arguments, **options):
        return token_logprobs(1.01 * hidden, *arguments, **options)

    def generator(self, request):
        request.logprobs[-1] += 0.01
        return completion(self, request)

    completion = LocalGenerator._completion
    monkeypatch.setattr("grpo.model.policy.token_logprobs", update)
    monkeypatch.setattr(LocalGenerator, "_completion", generator)
    outcome = check("llama", ["update", "gradients", "generator"])
    assert {fault.split(":")[0] for fault in outcome.faults} == {
        *("update", "update in parts", "rows without a prefix", "gradient", "gradient in parts"),
        *("sampled (4096)", "second wave (4096)", "sampled (100)", "second wave (100)", "greedy"),
    }


def test_a_traceback_is_a_fault(monkeypatch):
    def fail(*arguments):
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr("grpo.generators.local.LocalGenerator._sample", fail)
    (fault,) = check("llama", ["generator"]).faults
    assert fault.startswith("generator")
    assert "ZeroDivisionError: nothing to divide" in fault
