"""Runs that are killed or signalled, and runs of several ranks, on the model of sixteen words."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.runs import metrics
from grpo.reporting.loggers import read_metrics
from grpo.training.checkpoint import checkpoints
from tests.support.processes import alive, children

ROOT = Path(__file__).resolve().parents[2]
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}


def measure(name, *options):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runs", name, "--json", *options],
        cwd=ROOT, env=QUIET, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_killed_and_resumed_run_equals_an_undisturbed_one():
    result = measure("kills", "--kills", "8", "--steps", "60")
    assert (result["kills"], result["steps"]) == (8, 60)
    assert result["adapter_equal"]
    assert result["metrics_equal"]


def test_two_ranks_equal_one_with_twice_the_groups():
    result = measure("ranks", "--steps", "3")
    assert result["loss_difference"] < 1e-6
    assert 0 < result["gradient_difference"] < 1e-6  # not 0: the order of summation differs


def test_steps_leak_no_files():
    result = measure("soak", "--steps", "100")
    assert result["files_grown"] == 0
    assert result["mb_grown"] < 20


def launch(folder, *options, ranks=0):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks else []), "-m", "tests.support.scripted"]
    return subprocess.Popen(
        [*command, "--output", str(folder), "--steps", "100000", *options],
        cwd=ROOT, env=QUIET, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_steps(process, folder, count=2):
    end = time.monotonic() + 120
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_after_its_step(tmp_path, number):
    process = launch(tmp_path)
    wait_for_steps(process, tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert errors.splitlines()[-1] == f"stopped by {number.name}"
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert checkpoints(tmp_path)[-1].name == f"step-{steps[-1]:06d}"


def test_a_signal_ends_all_ranks_after_the_same_step_and_one_rank_can_resume(tmp_path):
    process = launch(tmp_path, "--groups-per-step", "1", ranks=2)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    steps = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert checkpoints(tmp_path)[-1].name == f"step-{steps:06d}"

    single = launch(tmp_path, "--groups-per-step", "2", "--resume", "--steps", str(steps + 1))
    _, errors = single.communicate(timeout=60)
    assert single.returncode == 0, errors
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == steps + 1


def test_a_killed_rank_ends_all_ranks_with_its_error(tmp_path):
    process = launch(tmp_path, ranks=2)
    wait_for_steps(process, tmp_path)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "exitcode  : -9" in errors or "Signal 9" in errors
    assert not alive(workers)


def test_two_torchruns_train_together_as_two_machines_would(tmp_path):
    """Two torchruns of one process each that find each other by a rendezvous."""
    plain = subprocess.run(
        [sys.executable, "-m", "tests.support.scripted", "--output", str(tmp_path / "one"),
         "--steps", "3"], cwd=ROOT, env=QUIET, timeout=120)  # fmt: skip
    assert plain.returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    torchruns = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
             f"--node-rank={node}", "--rdzv-backend=c10d", "--rdzv-id=test",
             f"--rdzv-endpoint={endpoint}", "-m", "tests.support.scripted", "--steps", "3",
             "--groups-per-step", "1", "--output", str(tmp_path / "two")],
            cwd=ROOT, env=QUIET, stderr=subprocess.PIPE, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    for torchrun in torchruns:
        _, errors = torchrun.communicate(timeout=120)
        assert torchrun.returncode == 0, errors
    one, two = (metrics(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["reward"] == b["reward"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
