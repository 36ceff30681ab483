"""Two ranks of torchrun, each with a vLLM engine of its own in its process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from grpo.generators.vllm.engine import VLLMEngine
from grpo.reporting.loggers import read_metrics

ROOT = Path(__file__).resolve().parents[5]


async def test_an_engine_destroys_no_process_group_but_its_own(make_policy, tmp_path):
    policy = make_policy("lfm2")
    alone = VLLMEngine(policy, max_new_tokens=8)
    assert dist.is_initialized()
    await alone.close()
    assert not dist.is_initialized()
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        engine = VLLMEngine(policy, max_new_tokens=8)
        await engine.close()
        dist.barrier()
        dist.destroy_process_group(dist.new_group())
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert not dist.is_initialized()


SCRIPTED = ["tests.grpo.generators.vllm.real.two_ranks", "--task", "click-word"]
COMMAND = ["grpo", "train", "--task", "click-test"]  # with a browser server per rank


@pytest.mark.parametrize(("program", "weight_sync"), [(SCRIPTED, "adapter"), (COMMAND, "merged")])
def test_two_ranks_train_with_an_engine_each(lfm2_path, tmp_path, program, weight_sync):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", *program, "--backend", "vllm", "--vllm-sync", weight_sync]
    command += ["--model", str(lfm2_path), "--output", str(tmp_path)]
    command += ["--steps", "2", "--dtype", "float32", "--device", "cpu"]
    command += ["--group-size", "4", "--groups-per-step", "1", "--max-turns", "1"]
    command += ["--max-new-tokens", "4", "--eval-episodes", "2", "--beta", "0.05"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "summary.json").is_file()
    steps = read_metrics(tmp_path / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert step["sampling/logp_difference"] < 1e-3
        assert {name: value for name, value in step.items() if "version/" in name} == {
            f"sampling/version/rank{rank}": step["step"] - 1 for rank in (0, 1)
        }
        gaps = [step[f"sampling/logp_difference/rank{rank}"] for rank in (0, 1)]
        assert max(gaps) < 1e-3
        assert gaps[0] != gaps[1]  # of two engines, with seeds of their own


def test_no_rank_starts_an_engine_if_one_has_too_little_memory(lfm2_path, tmp_path):
    """Engines wait for each other while they start: the other rank would wait for half an hour."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", *SCRIPTED, "--backend", "vllm", "--model", str(lfm2_path), "--device", "cpu"]
    run = subprocess.run(
        [*command, "--output", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOO_LITTLE_MEMORY_ON_RANK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1
    assert "too little on rank 1" in run.stderr
    assert "rank 1 has failed" in run.stderr
