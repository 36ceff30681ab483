"""Measure one implementation of the update for `benchmarks/update.py`.

Reads one JSON request per line and writes one JSON response per line. Output of libraries goes to
standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grpo.algorithm.batch import split_batch
from grpo.algorithm.losses import policy_loss
from grpo.model.loading import load_model
from grpo.model.lora_policy import LoRAPolicy
from grpo.tree.token_tree import count_distinct
from grpo.types import TokenBatch
from tests.support.workloads import Workload, floor_operations

LORA = {"r": 8, "alpha": 16}


class Ours:
    """Our `LoRAPolicy` with one of its forwards (tree or padded), and `policy_loss`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        dtype = getattr(torch, arguments.dtype)
        model, tokenizer = load_model(arguments.model, device=arguments.device, dtype=dtype)
        adapter = arguments.adapter if arguments.adapter.exists() else None
        self.forward_mode = arguments.implementation
        self.policy = LoRAPolicy(
            model,
            tokenizer,
            lora_r=LORA["r"],
            lora_alpha=LORA["alpha"],
            adapter=adapter,
            forward=self.forward_mode,
            activation_checkpointing=arguments.checkpointing,
            cuda_graphs=not arguments.no_graphs,
        )
        self.config = model.config
        if adapter is None:  # with B at zero the gradient of A would be zero
            random = torch.Generator().manual_seed(1)
            for p in self.policy.parameters():
                p.data += (0.01 * torch.randn(p.shape, generator=random)).to(p.device)
            self.policy.save(arguments.adapter)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the trained parameters by name."""
        return {n: p for n, p in self.policy.model.named_parameters() if p.requires_grad}

    def backward(self, batch: TokenBatch, rows: int) -> None:
        """Accumulate the gradient over micro-batches of `rows` padded rows, or tree tokens."""
        padded = self.forward_mode == "padded"
        tokens = rows * batch.input_ids.shape[1] if padded else rows
        micro_batches = split_batch(batch, tokens, padded=padded)
        micro_batches = [micro.to(self.policy.device) for micro in micro_batches]
        prefix = self.policy.shared_prefix(micro_batches)
        for micro in micro_batches:
            logprobs = self.policy.logprobs(micro, prefix=prefix).logprobs
            loss, _ = policy_loss(
                logprobs, micro.advantages, micro.completion_mask, micro.token_weights
            )
            loss.backward()
        if prefix:
            prefix.backward()


class Reference:
    """TRL's `GRPOTrainer.compute_loss` on PEFT's model."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from datasets import Dataset
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        source = arguments.model
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, arguments.dtype))
        model = PeftModel.from_pretrained(model, arguments.adapter, is_trainable=True)
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda **_: [0.0],
            args=GRPOConfig(
                output_dir=str(arguments.adapter.parent / "trl"),
                use_cpu=arguments.device == "cpu",
                bf16=False,
                fp16=False,
                beta=0.0,
                loss_type="dapo",
                num_generations=8,
                per_device_train_batch_size=8,
                report_to=[],
            ),
            train_dataset=Dataset.from_dict({"prompt": ["never read"] * 8}),
            processing_class=AutoTokenizer.from_pretrained(source),
        )
        self.model = self.trainer.model.train()
        self.config = model.config
        # Set as in a step without gradient accumulation: the normalizer is the token count.
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.steps_per_generation

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the trained parameters by the names that ours have."""
        named = self.model.named_parameters()
        return {
            n.removeprefix("base_model.model.").replace(".default.weight", ""): p
            for n, p in named
            if p.requires_grad
        }

    def backward(self, batch: TokenBatch, rows: int) -> None:
        """Accumulate the gradient over micro-batches of `rows` rows."""
        batch = batch.to(self.model.device)
        start = int(batch.completion_mask.any(0).nonzero()[0])
        for part in split_batch(batch, rows * batch.input_ids.shape[1], padded=True):
            inputs = {
                "prompt_ids": part.input_ids[:, :start],
                "prompt_mask": part.token_mask[:, :start].long(),
                "completion_ids": part.input_ids[:, start:],
                "completion_mask": part.completion_mask[:, start:].long(),
                "advantages": part.advantages,
                "num_items_in_batch": batch.completion_mask.sum(),
            }
            loss = self.trainer.compute_loss(self.model, inputs)
            self.trainer.accelerator.backward(loss)


class Memory:
    """Memory in bytes above the loaded model's: the process's on a CPU, torch's on CUDA.

    On CUDA it is what torch reserves: tensors of a CUDA graph are not counted as allocated.
    """

    def __init__(self, device: str) -> None:
        self.device, self.loaded = device, 0
        self.loaded = self.now()

    def now(self) -> int:
        """Return the memory in use."""
        if self.device != "cpu":
            return torch.cuda.memory_reserved()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def reset(self) -> None:
        """Begin a new peak."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the peak since `reset`, without the loaded model."""
        if self.device != "cpu":
            return torch.cuda.max_memory_reserved() - self.loaded
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 - self.loaded


def matrix_rate(device: str, dtype: torch.dtype, config: Any, nodes: int = 1024) -> float:
    """Return operations per second in a layer of the model's size, the median of 20 products."""
    x = torch.randn(nodes, config.hidden_size).to(device, dtype)
    weight = torch.randn(config.intermediate_size, config.hidden_size).to(device, dtype)
    seconds = [timed(lambda: torch.nn.functional.linear(x, weight), device) for _ in range(22)]
    return 2 * x.numel() * weight.shape[0] / statistics.median(seconds[2:])


def timed(function: Callable[[], Any], device: str) -> float:
    """Return the seconds that a call takes."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def step(worker: Ours | Reference, memory: Memory, request: dict[str, Any]) -> dict[str, Any]:
    """Measure the forward and backward of one update."""
    batch = Workload(**request["workload"]).batch(worker.config.vocab_size)
    parameters = worker.parameters()
    for p in parameters.values():
        p.grad = None
    memory.reset()
    seconds = timed(lambda: worker.backward(batch, request["rows"]), memory.device)
    if request.get("gradients"):
        gradients = {n: p.grad.float().cpu() for n, p in parameters.items() if p.grad is not None}
        torch.save(gradients, request["gradients"])
    rows = batch.rows()
    return {
        "seconds": seconds,
        "peak": memory.peak(),
        "tokens": batch.input_ids.numel(),
        "distinct": count_distinct(rows),
        "operations": floor_operations(batch, worker.config, LORA["r"]),
    }


def main() -> None:
    """Respond to requests until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=["tree", "padded", "trl"])
    parser.add_argument("--model", required=True)
    parser.add_argument(
        "--adapter", type=Path, required=True, help="adapter folder, created if missing"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--no-graphs", action="store_true")
    arguments = parser.parse_args()

    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.platform == "linux":  # the kernel ends this process first when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.manual_seed(0)
    worker = (Reference if arguments.implementation == "trl" else Ours)(arguments)
    small = Workload(groups=1, group_size=2, prompt=24, shared_prefix=8, completion=4)
    worker.backward(small.batch(worker.config.vocab_size), 2)  # loads the weights
    memory = Memory(arguments.device)
    print("{}", file=responses, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "rate":
            dtype = getattr(torch, arguments.dtype)
            response = {"rate": matrix_rate(arguments.device, dtype, worker.config)}
        else:
            response = step(worker, memory, request)
        print(json.dumps(response), file=responses, flush=True)


if __name__ == "__main__":
    main()
