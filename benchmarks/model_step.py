"""A GRPO step without an environment: seconds of sampling and update, and peak memory.

Prompts and rewards are random; the options are those of a configuration in `examples/configs/`,
with one turn per episode. Without --model the weights are random, too, in LFM2-350M's shape. Peak
memory is the whole process's, loading included; on a GPU what torch reserved there. From the
second step on the optimizer's moments exist before the backward pass, and on a GPU the CUDA graphs:
use `--steps 2` to include them.

    python -m benchmarks.model_step
    python -m benchmarks.model_step --config examples/configs/lfm2_350m_full.yaml --json
    python -m benchmarks.model_step --model HuggingFaceTB/SmolLM2-135M-Instruct --device cuda
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from envs.base import Task
from grpo.algorithm.batch import make_batch, reward_tensors
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.config import Config
from grpo.distributed import World
from grpo.generators.local import LocalGenerator
from grpo.model.bundled import bundled_model_path
from grpo.model.device import choose_device, choose_dtype, dtype_name
from grpo.model.loading import load_model, make_policy
from grpo.training.updater import Updater
from grpo.types import Episode, Group, Turn
from tests.support.models import LFM2_350M, make_lfm2
from tests.support.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent


async def sample(config: Config, generator: LocalGenerator, prompt_tokens: int) -> list[Group]:
    """Sample one-turn episodes on random prompts; half of each group is rewarded."""
    load = Workload(config.groups_per_step, config.group_size, prompt_tokens)
    rows = load.batch(generator.policy.model.config.vocab_size).input_ids
    prompts = rows[:, :prompt_tokens].tolist()  # equal within a group
    completions = await asyncio.gather(
        *(generator.generate(prompt, seed=n) for n, prompt in enumerate(prompts))
    )
    groups = []
    for g in range(config.groups_per_step):
        task = Task("random", g)
        own = completions[g * config.group_size :][: config.group_size]
        episodes = (
            Episode(task, (Turn(completion, "", True),), float(n % 2), n % 2 > 0, "done")
            for n, completion in enumerate(own)
        )
        groups.append(Group(task, tuple(episodes)))
    return groups


def load(model: str, tokenizer: str, config: Config) -> tuple[Any, Any]:
    """Load a model and its tokenizer, or make LFM2-350M's shape with another model's tokenizer."""
    from transformers import AutoTokenizer

    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    if model:
        return load_model(model, device=device, dtype=dtype)
    read = AutoTokenizer.from_pretrained(tokenizer or bundled_model_path())
    return make_lfm2(LFM2_350M, dtype).to(device), read


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load, sample and update; return the figures of the last step."""
    names = ("max_new_tokens", "dtype", "device", "cuda_graphs")
    config = Config.from_yaml(arguments.config).replace(**{n: getattr(arguments, n) for n in names})
    policy = make_policy(config, *load(arguments.model, arguments.tokenizer, config))
    updater = Updater(config, policy, World.single())
    generator = LocalGenerator(policy, max_new_tokens=config.max_new_tokens)
    cuda = policy.device.type == "cuda"
    for _ in range(arguments.steps):
        if cuda:
            torch.cuda.synchronize()
        started, before = time.perf_counter(), generator.tokens_sampled
        groups = asyncio.run(sample(config, generator, arguments.prompt))
        sampled = time.perf_counter()
        advantages = turn_advantages(*reward_tensors(groups), CreditRule())
        batch = make_batch(groups, advantages)
        assert batch is not None
        rows = len(batch)
        metrics = updater.update(batch)
        if cuda:
            torch.cuda.synchronize()
        updated = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "train": config.train,
        "dtype": dtype_name(policy.model.dtype),
        "steps": arguments.steps,
        "rows": rows,
        "tokens_sampled": generator.tokens_sampled - before,
        "trained": sum(p.numel() for p in policy.parameters()),
        "sample_seconds": sampled - started,
        "update_seconds": updated - sampled,
        "grad_norm": metrics["grad_norm"],
        "peak_gb": (torch.cuda.max_memory_reserved() if cuda else peak) / 1e9,
    }


def main() -> None:
    """Measure in a fresh process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(ROOT / "examples/configs/lfm2_350m_lora.yaml"),
                        help="configuration file of the run")  # fmt: skip
    parser.add_argument("--model", default="", help="model (default: LFM2-350M's shape)")
    parser.add_argument(
        "--tokenizer", default="", help="folder of the shape's tokenizer (default: the bundled)"
    )
    parser.add_argument("--device", default="cpu", help="device: cpu, cuda, ...")
    parser.add_argument(
        "--cuda-graphs", type=json.loads, default=True, help="true or false: use CUDA graphs"
    )
    parser.add_argument("--steps", type=int, default=1, help="steps to run; the last one is timed")
    parser.add_argument("--prompt", type=int, default=300, help="tokens per prompt")
    parser.add_argument(
        "--max-new-tokens", type=int, default=16, help="maximum tokens per completion"
    )
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(step(arguments)))
        return
    # A fresh process, so that its peak memory is the step's alone.
    command = [sys.executable, "-m", "benchmarks.model_step", *sys.argv[1:], "--here"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    table = Table("train", "trained", "rows", "sample s", "update s", "peak GB", "load")
    table.add_row(result["train"], f"{result['trained'] / 1e6:.1f} M", str(result["rows"]),
                  f"{result['sample_seconds']:.2f}", f"{result['update_seconds']:.2f}",
                  f"{result['peak_gb']:.2f}", f"{os.getloadavg()[0]:.1f}")  # fmt: skip
    Console().print(table)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
