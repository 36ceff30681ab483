"""Binding OpenMP's threads: which devices, whose decision, and what the threads then are."""

import os
import subprocess
import sys

import pytest

from grpo import threads

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="threads are bound on Linux only")

# The cores that each thread of a process may use, after products that need all threads.
CORES_OF_THREADS = """
import os
from grpo.threads import bind_threads

bind_threads("cpu")
import torch

for _ in range(3):
    torch.ones(512, 512) @ torch.ones(512, 512)
cores = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
print(torch.get_num_threads(), sum(each == {min(each)} for each in cores), len(set().union(*cores)))
"""


@pytest.fixture
def openmp(monkeypatch):
    """The variables of this process, with none of OpenMP's; those that are set are removed."""
    variables = {name: value for name, value in os.environ.items() if name[:4] != "OMP_"}
    monkeypatch.setattr(os, "environ", variables)
    return lambda: {name: value for name, value in variables.items() if name[:4] == "OMP_"}


@LINUX
@pytest.mark.parametrize(
    ("device", "driver", "bound"),
    [
        ("cpu", False, True),
        ("cpu", True, True),
        ("auto", False, True),
        ("auto", True, False),
        ("cuda:1", False, False),
        ("xpu", True, False),
    ],
)
def test_threads_are_bound_where_the_cpu_computes(
    openmp, monkeypatch, tmp_path, device, driver, bound
):
    path = tmp_path / "driver"
    if driver:
        path.touch()
    monkeypatch.setattr(threads, "GPU_DRIVERS", [tmp_path / "none", path])
    threads.bind_threads(device)
    assert openmp() == ({"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"} if bound else {})


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_PROC_BIND"])
def test_the_users_variables_are_left_alone(openmp, name):
    os.environ[name] = "1"
    threads.bind_threads("cpu")
    assert openmp() == {name: "1"}


@pytest.mark.parametrize("users", [None, "0"])
def test_a_mac_binds_nothing_and_may_use_its_cpu_for_what_its_gpu_lacks(openmp, monkeypatch, users):
    monkeypatch.setattr(sys, "platform", "darwin")
    name = "PYTORCH_ENABLE_MPS_FALLBACK"
    os.environ.pop(name, None)
    if users:
        os.environ[name] = users
    threads.bind_threads("auto")
    assert openmp() == {}
    assert os.environ[name] == (users or "1")


@LINUX
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_each_thread_of_torch_has_a_core():
    variables = {name: value for name, value in os.environ.items() if name[:4] != "OMP_"}
    command = [sys.executable, "-c", CORES_OF_THREADS]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    torch_threads, bound, cores = map(int, done.stdout.split())
    assert bound >= torch_threads == cores


@pytest.mark.parametrize(
    ("wanted", "binding", "available", "threads_used"),
    [
        (0, "true", 4, 2),
        (0, "close,spread", 4, 2),
        (0, "TRUE", 1, 1),
        (0, "false", 4, 1),
        (0, None, 4, 1),
        (3, None, 4, 3),
        (1, "true", 4, 1),
    ],
)
def test_two_threads_sample_where_they_are_bound(
    openmp, monkeypatch, wanted, binding, available, threads_used
):
    if binding is not None:
        os.environ["OMP_PROC_BIND"] = binding
    monkeypatch.setattr("torch.get_num_threads", lambda: available)
    assert threads.sampling_threads(wanted) == threads_used
