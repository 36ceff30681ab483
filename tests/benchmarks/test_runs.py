"""Runs that are killed or signalled, and runs of several ranks, on the model of sixteen words."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.kill_points import Point
from benchmarks.kills import CONFIGURATIONS, CUT, PARTS, choose, plan
from benchmarks.run_files import differences, metrics
from grpo.reporting.loggers import read_metrics
from grpo.training.checkpoint import checkpoints
from tests.support import scripted
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


def test_killed_and_resumed_runs_equal_undisturbed_ones():
    """One kill of each part of a run, and a few at random moments."""
    result = measure("kills", "--kills", str(len(PARTS) + 2), "--steps", "30")
    assert [row["different"] for row in result["rows"]] == [[], []]
    assert [row["part"] for row in result["rows"]] == ["random moment", "every part"]
    # A resumed warm start passes fewer points: of two kills in it the second may find no point.
    assert result["rows"][1]["kills"] >= len(PARTS) - 1
    assert result["equal"]


def write_run(folder, **loss):
    """Write some files of a run of two steps."""
    checkpoint = folder / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    torch.save(
        {"step": 2, "seconds": {"sync": 1.0}, "adam": torch.zeros(2)}, checkpoint / "trainer.pt"
    )
    lines = [{"step": 1, "time": 5.0, "loss": 0.1}, {"step": 2, "time": 6.0, "loss": 0.2} | loss]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text('{"run": "a", "episodes": 32}')
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")


def test_what_is_called_equal(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_run(one)
    write_run(other, time=7.0)
    (other / "summary.json").write_text('{"episodes": 32, "run": "b"}')
    (other / "earlier" / "a").mkdir(parents=True)
    assert differences(one, other) == []
    (other / "adapter" / "adapter_model.safetensors").write_bytes(b"weightS")
    (other / "summary.json").write_text('{"run": "b", "episodes": 48}')
    state = {"step": 2, "seconds": {"sync": 2.0}, "adam": torch.tensor([0.0, -0.0])}
    torch.save(state, other / "checkpoints" / "step-000002" / "trainer.pt")
    (other / "adapter.tmp").mkdir()
    assert differences(one, other) == [
        "adapter/adapter_model.safetensors",
        "checkpoints/step-000002/trainer.pt",
        "summary.json",
        "adapter.tmp left over",
    ]
    assert "adapter.tmp missing" in differences(other, one)
    shutil.rmtree(other)
    write_run(other, loss=0.2 + 1e-8)
    assert differences(one, other) == ["metrics.jsonl"]


@pytest.mark.parametrize("name", ["entropy", "sampling/logp_difference"])
def test_what_was_sampled_may_differ_by_rounding(tmp_path, name):
    folders = [tmp_path / part for part in ("one", "rounded", "other")]
    for folder, value in zip(folders, (0.5, 0.5 + 1e-8, 0.5 + 1e-5), strict=True):
        write_run(folder, **{name: value})
    one, rounded, other = folders
    assert differences(one, rounded) == []
    assert differences(one, other) == ["metrics.jsonl"]


def test_a_recorded_episode_may_differ_by_rounding_in_its_log_probabilities_alone(tmp_path):
    pages = [
        {"logprob": -2.0},
        {"logprob": -2.0 + 1e-8},
        {"logprob": -2.0 + 1e-5},
        {"reward": 1e-8},
    ]
    one, rounded, *others = folders = [tmp_path / str(i) for i in range(len(pages))]
    for folder, page in zip(folders, pages, strict=True):
        folder.mkdir()
        (folder / "episode.json").write_text(
            json.dumps({"pages": [{"logprob": -2.0, "reward": 0.0} | page]})
        )
    assert differences(one, rounded) == []
    assert [differences(one, other) for other in others] == [["episode.json"]] * 2
    assert differences(one, others[0], rounding=1e-4) == []
    assert differences(one, others[1], rounding=1e-4) == ["episode.json"]


def test_points_are_chosen_from_each_place_in_the_order_of_the_run():
    points = [Point("save", f"step {i}", k, "write x") for i in (1, 2) for k in range(1, 30 * i)]
    points.insert(0, Point("start", "", 1, "os.mkdir run"))
    chosen = choose(points, "save", 40, random.Random(0))
    assert [points.index(point) for point in chosen] == sorted({*map(points.index, chosen)})
    assert len(chosen) == 40
    assert 15 <= sum(point.place == "step 1" for point in chosen) <= 25
    assert choose(points, "start", 3, random.Random(0)) == points[:1]
    assert all(point.cut for point in choose(points, CUT, 5, random.Random(0)))


def test_every_part_of_every_configuration_is_killed_alike():
    assert Counter(part for _, part in plan()) == dict.fromkeys(PARTS, len(CONFIGURATIONS))
    assert Counter(name for name, _ in plan()) == dict.fromkeys(CONFIGURATIONS, len(PARTS))


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


def train_here(folder, *options):
    """Train in this process, as a single one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert scripted.main(["--output", str(folder), *options]) == 0
    torch.set_num_threads(threads)


def wait_for_steps(process, folder, count=2):
    end = time.monotonic() + 120
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_signal_ends_a_run_after_its_step(tmp_path):
    process = launch(tmp_path)
    wait_for_steps(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.splitlines()[-1] == "stopped by SIGTERM"
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

    train_here(tmp_path, "--groups-per-step", "2", "--resume", "--steps", str(steps + 1))
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
    # A first step without an advantage has a gradient of rounding alone, which AdamW scales up.
    settings = ("--steps", "3", "--valid-action-bonus", "0.5", "--seed", "1")
    train_here(tmp_path / "one", *settings)
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    torchruns = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
             f"--node-rank={node}", "--rdzv-backend=c10d", "--rdzv-id=test",
             f"--rdzv-endpoint={endpoint}", "-m", "tests.support.scripted", *settings,
             "--groups-per-step", "1", "--output", str(tmp_path / "two")],
            cwd=ROOT, env=QUIET, stderr=subprocess.PIPE, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    for torchrun in torchruns:
        _, errors = torchrun.communicate(timeout=120)
        assert torchrun.returncode == 0, errors
    one, two = (metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a["reward"] == b["reward"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
