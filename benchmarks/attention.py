"""What the choice of the tree's attention kernel gives on a GPU, and what packed rows give.

The kernels are measured as `grpo doctor` does, for the heads of several models, in one layer; SDPA
is the tree's, cut into chunks, and padded rows are the yardstick. The update over packed rows is
compared with that over padded rows, in turns, for a model with sliding windows (Mistral's code in
SmolLM2-135M's shape, random weights) and rows of mixed and of equal lengths, forward and backward:
on a CPU in seconds of its time, which other programs change less. One GPU should need no more than
two minutes:

    python -m benchmarks.attention --json
    python -m pytest tests/grpo/tree/test_attention.py tests/grpo/model/test_packed.py
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.update_worker import timed
from grpo.algorithm.batch import sort_batch, split_batch
from grpo.doctor.attention import SIZES, difference, least_nodes, measure, pages
from grpo.model.lora_policy import LoRAPolicy
from grpo.tree.kernel_choice import Heads
from grpo.types import TokenBatch
from tests.support.models import make_tokenizer

SHAPES = {"SmolLM2-135M": (9, 3, 64), "Qwen2.5-1.5B": (12, 2, 128)}
VOCABULARY, BUDGET, ROUNDS = 2000, 4096, 3
COMPLETION = 12


def kernels(dtype: torch.dtype) -> list[dict[str, Any]]:
    """Measure the tree's kernels on the GPU."""
    rows = []
    for name, (heads, kv_heads, width) in SHAPES.items():
        shape = Heads(torch.device("cuda", 0), dtype, heads, kv_heads, width, width)
        error = difference(shape, pages(SIZES[0])[0])
        timings = [measure(shape, nodes) for nodes in SIZES]
        rows += [
            {"heads of": name, **t._asdict(), "difference": error, "least": least_nodes(timings)}
            for t in timings
        ]
    return rows


def make_policy(layers: int, dtype: torch.dtype, device: str) -> LoRAPolicy:
    """Make a model with sliding windows and an adapter of random numbers."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        sliding_window=512,
        eos_token_id=0,
    )
    model = MistralForCausalLM(config).eval().to(device, dtype)
    policy = LoRAPolicy(model, make_tokenizer(), forward="padded")
    assert policy.packed
    for p in policy.parameters():
        p.data = 0.01 * torch.randn(p.shape, device=device)
    return policy


def make_batch(shortest: int, longest: int, count: int) -> TokenBatch:
    """Draw rows of lengths between two bounds, evenly on a logarithmic scale."""
    random = torch.Generator().manual_seed(0)
    ratio = torch.rand(count, 1, generator=random)
    lengths = (shortest * (longest / shortest) ** ratio).long()
    column = torch.arange(int(lengths.max()))
    mask = column < lengths
    ids = torch.randint(5, VOCABULARY, mask.shape, generator=random)
    blank = torch.zeros(mask.shape)
    completions = mask & (column >= lengths - COMPLETION)
    return TokenBatch(ids, mask, completions, blank, torch.ones(count), blank)


def packed(layers: int, dtype: torch.dtype, device: str, rows: int) -> list[dict[str, Any]]:
    """Measure the update's forward and backward over packed and padded rows, in turns."""
    policy, results = make_policy(layers, dtype, device), []

    def update() -> None:
        for part in parts:
            policy.logprobs(part).logprobs.sum().backward()

    for shortest, longest in ((100, 1500), (300, 320)):
        batch = sort_batch(make_batch(shortest, longest, rows), padded=True)
        parts = split_batch(batch, BUDGET, padded=True)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for measured in range(-1, ROUNDS):  # the first round loads kernels
            for policy.packed in seconds:
                elapsed = timed(update, device) if device == "cuda" else cpu_seconds(update)
                if measured >= 0:
                    seconds[policy.packed].append(elapsed)
        without, with_padding = median(seconds[True]), median(seconds[False])
        results.append(
            {
                "tokens per row": f"{shortest} to {longest}",
                "tokens": int(batch.token_mask.sum()),
                "with padding": sum(len(p) * int(p.token_mask.sum(1).max()) for p in parts),
                "packed_s": without,
                "padded_s": with_padding,
                "ratio": with_padding / without,
                "load": round(os.getloadavg()[0], 1),
            }
        )
    return results


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the seconds that this process's threads compute in a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a table."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    Console(width=130).print(table)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--dtype", default="bfloat16" if on_gpu else "float32")
    parser.add_argument("--layers", type=int, default=30 if on_gpu else 4)
    parser.add_argument("--rows", type=int, default=64 if on_gpu else 12)
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of the model's check: padded rows are meant
    device, dtype = "cuda" if on_gpu else "cpu", getattr(torch, arguments.dtype)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    result: dict[str, Any] = {
        "machine": f"{name}, torch {torch.__version__}, {arguments.dtype}",
        "kernels": kernels(dtype) if on_gpu else [],
        "packed": packed(arguments.layers, dtype, device, arguments.rows),
    }
    if on_gpu:
        show(f"{result['machine']}: seconds of attention in a layer", result["kernels"])
    show(f"{result['machine']}: seconds of an update, {arguments.layers} layers", result["packed"])
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
