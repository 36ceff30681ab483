"""How much of a GPU's memory vLLM gets, and when that is refused. There is no GPU here."""

from types import SimpleNamespace

import pytest
import torch

from grpo.errors import ConfigError
from grpo.generators.vllm import memory
from grpo.generators.vllm.memory import GIB, engine_memory, memory_share, server_memory


def share(free, total=16, *, weights=3, reserved=0, asked=0.0, sleeps=False):
    """A share for sizes in GiB."""
    sizes = {"weights": int(weights * GIB), "reserved": int(reserved * GIB)}
    return memory_share(int(free * GIB), int(total * GIB), **sizes, asked=asked, sleeps=sleeps)


def test_the_share_is_of_the_whole_memory_and_chosen_by_what_is_free():
    assert share(12) == pytest.approx(0.5 * 12 / 16)
    assert share(12, sleeps=True) == pytest.approx(0.85 * 12 / 16)
    assert share(12, reserved=2) == pytest.approx(0.5 * 10 / 16)
    assert share(12, total=80) == pytest.approx(0.5 * 12 / 80)


def test_a_share_that_is_asked_for_is_kept():
    assert share(12, asked=0.7, reserved=9) == pytest.approx(0.7)
    assert share(12, asked=0.75) == pytest.approx(0.75)


def test_a_share_above_what_is_free_is_refused():
    with pytest.raises(ConfigError) as told:
        share(12, asked=0.8)
    assert str(told.value) == (
        "vllm_memory=0.8 is a share of the GPU's whole memory, 12.8 GiB, but 12.0 of the GPU's "
        "16.0 GiB are free beside the trainer: set it below 0.75, or to 0 to let it be chosen"
    )


def test_too_little_for_the_model_is_refused():
    assert share(8) == pytest.approx(4 / 16)
    with pytest.raises(ConfigError) as told:
        share(7.8)
    assert str(told.value) == (
        "vLLM needs at least 4.0 GiB, 3.0 of them for weights, and would get 3.9 (0.5 of what is "
        "free): 7.8 of the GPU's 16.0 GiB are free beside the trainer; try --vllm-sleep, a larger "
        "--vllm-memory, a smaller model, or --backend local, which shares the trainer's weights"
    )
    assert share(7.8, sleeps=True) == pytest.approx(0.85 * 7.8 / 16)
    with pytest.raises(ConfigError, match=r"would get 3\.2 \(0\.2 of all\).*try a smaller model"):
        share(12, asked=0.2, sleeps=True)
    with pytest.raises(ConfigError, match=r"would get 0\.0 "):
        share(4, reserved=6)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of which 10 of 16 GiB are free, once torch's cache is given back."""
    free = [9, 10]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.reverse())
    asked = []

    def mem_get_info(device):
        asked.append(device)
        return free[0] * GIB, 16 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    return asked


def policy_on(device):
    """As much of a policy as is read: 2 Gi weights in bfloat16, half of them quantised.

    An eighth of the other half is trained, in float32.
    """
    with torch.device("meta"):
        model = torch.nn.Linear(2**15, 2**15, bias=False, dtype=torch.bfloat16)
        model.quantized = torch.nn.Module()  # like lora's QuantizedWeight
        model.quantized.shape = (2**15, 2**15)
        model.quantized.register_buffer("packed", torch.empty(2**29, dtype=torch.uint8))
        trained = [torch.nn.Parameter(torch.empty(2**27, dtype=torch.float32))]
    model.dtype = torch.bfloat16
    return SimpleNamespace(device=torch.device(device), model=model, parameters=lambda: trained)


def test_memory_of_an_engine_beside_a_policy(gpu, monkeypatch):
    policy = policy_on("cuda:1")
    # The gradient and two moments of 0.5 GiB each come later.
    assert engine_memory(policy, 0.0, sleeps=True) == pytest.approx(0.85 * 8.5 / 16)
    assert gpu == [torch.device("cuda:1")]
    with pytest.raises(ConfigError, match=r"at least 5\.0 GiB, 4\.0 of them for weights"):
        engine_memory(policy, 0.0, sleeps=False)
    assert engine_memory(policy, 0.5, sleeps=False) == 0.5


def test_memory_on_a_cpu_is_that_of_the_cache(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", None)
    policy = policy_on("cpu")
    assert engine_memory(policy, 0.0, sleeps=False) == memory.CPU_CACHE == server_memory("cpu", 0.0)
    assert engine_memory(policy, 2.0, sleeps=False) == 2.0 == server_memory("cpu", 2.0)


def test_memory_of_a_server(gpu):
    assert server_memory("cuda", 0.8) == 0.8
    assert server_memory("cuda", 0.0) == pytest.approx(0.5 * 9 / 16)
