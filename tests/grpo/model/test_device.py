"""The device and what it lacks: ranks, dtypes, and Apple's missing float64."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from grpo.config import Config
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.model import device
from grpo.model.device import (
    best_device,
    check_dtype,
    choose_device,
    choose_dtype,
    out_of_memory,
)
from grpo.training.updater import Updater


@pytest.mark.parametrize(
    ("cuda", "mps", "best"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_device(cuda, mps, best):
    assert best_device(cuda=cuda, mps=mps) == best


@pytest.fixture
def mac(monkeypatch):
    """Let torch say that Apple's GPU is the one device here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_ranks_do_not_share_the_gpu_of_a_mac(mac, monkeypatch):
    assert choose_device("auto") == "mps"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match="device mps is for a single rank: expected device=cpu"):
        choose_device("auto")
    assert choose_device("cpu") == "cpu"


def test_a_dtype_that_the_device_lacks_is_one_line(monkeypatch):
    def ones(*shape, device, dtype):
        raise TypeError("BFloat16 is not supported on MPS")  # torch's words

    check_dtype("cpu", torch.float16)
    monkeypatch.setattr(device.torch, "ones", ones)
    with pytest.raises(ConfigError) as error:
        check_dtype("mps", torch.bfloat16)
    assert str(error.value) == (
        "dtype bfloat16 cannot be used on device 'mps': expected another one, such as float32; "
        "got: TypeError: BFloat16 is not supported on MPS"
    )


@pytest.mark.parametrize(("native", "chosen"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_the_device_has_instructions_for_it(monkeypatch, native, chosen):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    assert choose_dtype("auto", "cpu") == chosen
    assert choose_dtype("bfloat16", "cpu") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: native)
    assert choose_dtype("auto", "cuda:1") == chosen


def test_auto_on_a_mac_is_what_its_gpu_has(monkeypatch):
    def ones(*shape, device, dtype):
        if dtype == torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")

    monkeypatch.setattr(device, "_refusal", lambda *_: None)
    assert choose_dtype("auto", "mps") == torch.bfloat16
    monkeypatch.undo()
    monkeypatch.setattr(device.torch, "ones", ones)
    assert choose_dtype("auto", "mps") == torch.float32


def test_emulated_instructions_are_said(monkeypatch):
    monkeypatch.setattr(device, "_cpu_has_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="emulates them: dtype=float32 is many times faster here"):
        check_dtype("cpu", torch.bfloat16)


def test_what_a_mac_lacks_is_said_once_at_the_start(monkeypatch):
    monkeypatch.setattr(device.torch, "ones", lambda *shape, device, dtype: torch.zeros(1))
    with pytest.warns(UserWarning, match="runs on the CPU .float64.* device=cpu") as said:
        check_dtype("mps", torch.float32)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_dtype("cpu", torch.float32)
        check_dtype("cuda", torch.float32)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.50 GiB, ...)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (RuntimeError("The size of tensor a must match the size of tensor b"), False),
    ],
)
def test_an_allocation_that_failed_is_recognised_on_each_device(error, expected):
    assert out_of_memory(error) is expected


class WithoutFloat64(TorchDispatchMode):
    """Refuse float64 tensors, as Apple's GPUs do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(
            isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(result)
        ):
            raise TypeError(f"{function} makes a float64 tensor")
        return result


@pytest.mark.parametrize("family", ["llama", "lfm2", "mistral"])
def test_no_update_needs_float64(make_policy, groups, batch_of, family):
    policy = make_policy(family, double=False)
    updater = Updater(Config(beta=0.05, updates_per_batch=2), policy, World.single())
    batch = batch_of(groups)
    assert torch.float64 not in {x.dtype for x in vars(batch).values() if torch.is_tensor(x)}
    with WithoutFloat64():
        assert updater.update(batch)["grad_norm"] > 0
