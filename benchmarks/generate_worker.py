"""Measure one generator for `benchmarks/generate.py` and print one line of JSON.

Output of libraries goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import changed_weights, logprob_gap
from grpo.generators.vllm.engine import VLLMEngine
from grpo.generators.vllm.servers import VLLMServers
from grpo.model.loading import load_model
from grpo.model.lora_policy import LoRAPolicy
from grpo.types import Completion
from tests.support.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent

URL = "http://127.0.0.1:8765"
TOKENS = 16


class TRLSync(VLLMEngine):
    """Updates the engine's weights as TRL's `VLLMGeneration.sync_weights` does.

    TRL 1.16 merges the adapter and calls `model.load_weights` once per tensor.
    """

    async def sync(self) -> None:
        engine = self._thread.weights.engine
        model = engine.model_executor.driver_worker.model_runner.model
        for name, tensor in self.policy.merged():
            model.load_weights([(name, tensor)])
        engine.reset_prefix_cache()


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[None]:
    """Start a vLLM server and stop it afterwards; clients wait until it responds."""
    command = [sys.executable, "-m", "grpo", "serve-vllm", "--vllm-url", URL]
    command += ["--dtype", arguments.dtype, "--device", arguments.device]
    command += ["--model", arguments.model]
    process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # the process group includes its engine
        process.wait()


def make_generator(arguments: argparse.Namespace, policy: LoRAPolicy) -> Any:
    """Make the generator that `arguments.generator` names: a kind and how weights reach it."""
    kind, _, weight_sync = arguments.generator.partition(" ")
    if kind == "local":
        return LocalGenerator(policy, max_new_tokens=TOKENS, threads=1)
    if kind == "server":
        return VLLMServers(
            policy, [URL], max_new_tokens=TOKENS, weight_sync=weight_sync, deadline_s=300
        )
    engine = TRLSync if weight_sync == "trl" else VLLMEngine
    weight_sync = "merged" if weight_sync == "trl" else weight_sync
    return engine(policy, max_new_tokens=TOKENS, weight_sync=weight_sync, memory=arguments.memory)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sync and sample `rounds` times, each time with a different adapter."""
    dtype = getattr(torch, arguments.dtype)
    model, tokenizer = load_model(arguments.model, device=arguments.device, dtype=dtype)
    policy = LoRAPolicy(model, tokenizer)
    batch = Workload(completion=TOKENS).batch(model.config.vocab_size)
    lengths = (batch.token_mask & ~batch.completion_mask).sum(1).tolist()
    prompts = [row[:length] for row, length in zip(batch.rows(), lengths, strict=True)]
    generator = make_generator(arguments, policy)

    async def sample() -> tuple[list[Completion], float]:
        started = time.perf_counter()
        completions = await asyncio.gather(
            *(generator.generate(prompt, seed=i) for i, prompt in enumerate(prompts))
        )
        return completions, time.perf_counter() - started

    await generator.sync()
    completions, _ = await sample()
    result: dict[str, Any] = {"gap": [logprob_gap(policy, completions)], "sync": [], "tokens": []}
    with changed_weights(policy) as change:
        for number in range(arguments.rounds):
            change(0.01 + 0.002 * number)
            started = time.perf_counter()
            await generator.sync()
            result["sync"].append(time.perf_counter() - started)
            completions, seconds = await sample()
            sampled = sum(len(c.completion_ids) for c in completions)
            result["tokens"].append(sampled / seconds)
            result["gap"].append(logprob_gap(policy, completions))
    await generator.close()
    return result


def main() -> None:
    """Measure the generator named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generator", help='"local", "engine SYNC" or "server SYNC"')
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--memory", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    arguments = parser.parse_args()
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if arguments.generator.startswith("server"):
        with server(arguments):
            result = asyncio.run(measure(arguments))
    else:
        result = asyncio.run(measure(arguments))
    print(json.dumps(result), file=output, flush=True)


if __name__ == "__main__":
    main()
