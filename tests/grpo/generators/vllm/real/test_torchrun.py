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


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
def test_two_ranks_train_with_an_engine_each(lfm2_path, tmp_path, weight_sync):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "tests.grpo.generators.vllm.real.two_ranks", "--backend", "vllm"]
    command += ["--vllm-sync", weight_sync, "--model", str(lfm2_path), "--output", str(tmp_path)]
    command += ["--task", "click-word", "--steps", "2", "--dtype", "float32", "--device", "cpu"]
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
    assert all(step["sampling/logp_difference"] < 1e-3 for step in steps)
