"""Faults for tests of `grpo doctor`: GRPO_DOCTOR_BREAK=tree,training spoils what these check.

Each fault changes what is measured, never what a check says of it, and ends with the check.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

import torch

from envs.base import Env, Observation, StepResult, Task
from grpo.doctor.context import Context
from grpo.errors import ConfigError
from grpo.generators.local import LocalGenerator
from grpo.model.bundled import bundled_model_path
from grpo.model.policy import Policy
from grpo.tree.block_mask import block_mask
from grpo.tree.token_tree import TokenTree, build_tree
from grpo.types import Completion

VARIABLE = "GRPO_DOCTOR_BREAK"


def faults_of(environ: Mapping[str, str] = os.environ) -> dict[str, Fault]:
    """Return the faults that are asked for, by the name of the check.

    Raises:
        ConfigError: there is no such fault.
    """
    names = [name for name in environ.get(VARIABLE, "").split(",") if name]
    for name in names:
        if name not in FAULTS:
            raise ConfigError(f"{VARIABLE} must name some of {', '.join(FAULTS)}, got {name!r}")
    return {name: FAULTS[name] for name in names}


@contextmanager
def _old_package(context: Context) -> Iterator[None]:
    """Install an old transformers, as far as its metadata goes, before the real one."""
    with tempfile.TemporaryDirectory() as folder:
        metadata = Path(folder, "transformers-4.0.dist-info", "METADATA")
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.0\n")
        with patch.object(sys, "path", [folder, *sys.path]):
            yield


def _no_device(context: Context) -> AbstractContextManager[Any]:
    """Ask for a device that computes nothing."""
    return patch.object(context, "config", context.config.replace(device="meta"))


@contextmanager
def _no_memory(context: Context) -> Iterator[None]:
    """Take the device's free memory: allocate it on a GPU, limit the process on a CPU."""
    if torch.device(context.device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(context.device)
        held = torch.empty(free - 2**30, dtype=torch.uint8, device=context.device)
        yield
        del held
        torch.cuda.empty_cache()
        return
    import psutil

    process = psutil.Process()
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 2**30, before[1]))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, before)


def _wrong_products(context: Context) -> AbstractContextManager[Any]:
    """Multiply with the first row of the first matrix left out."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(a[:1]), a[1:]]) @ b

    return patch("grpo.doctor.machine.product", product)


@contextmanager
def _cut_weights(context: Context) -> Iterator[None]:
    """Load a copy of the model whose weights end too early."""
    source = Path(context.config.model) if context.config.model else bundled_model_path()
    with tempfile.TemporaryDirectory() as folder:
        for file in source.iterdir():
            if file.suffix == ".safetensors":
                with file.open("rb") as weights:
                    Path(folder, file.name).write_bytes(weights.read(10_000))
            else:
                Path(folder, file.name).symlink_to(file.resolve())
        with patch.object(context, "config", context.config.replace(model=folder)):
            yield


def _wrong_parents(context: Context) -> AbstractContextManager[Any]:
    """Make each node of the token tree its grandparent's child."""

    def build(rows: Any) -> TokenTree:
        tree = build_tree(rows)
        return replace(tree, parents=(tree.parents - 1).clamp(min=-1))

    return patch("grpo.model.policy.build_tree", build)


def _causal_blocks(context: Context) -> AbstractContextManager[Any]:
    """Let flex_attention see all earlier nodes, ancestors or not."""

    def blocks(ends: torch.Tensor, first: int, device: torch.device) -> Any:
        return block_mask(torch.full_like(ends, len(ends)), first, device)

    return patch("grpo.model.forward.block_mask", blocks)


def _old_weights(context: Context) -> AbstractContextManager[Any]:
    """Leave the local generator with the weights that it began with."""

    def make(policy: Policy, **options: Any) -> LocalGenerator:
        return LocalGenerator(copy.deepcopy(policy), **options)

    return patch("grpo.doctor.model.LocalGenerator", make)


@contextmanager
def _no_gradient(context: Context) -> Iterator[None]:
    """Make a gradient of the adapter NaN."""
    parameter = context.policy.parameters()[0]
    handle = parameter.register_hook(lambda gradient: gradient * torch.nan)
    try:
        yield
    finally:
        handle.remove()
        parameter.grad = None


class _ConstantReward:
    """An environment that rewards every action alike."""

    def __init__(self, env: Env) -> None:
        self.env = env

    async def reset(self, task: Task, *, screenshot: bool = False) -> Observation:
        return await self.env.reset(task, screenshot=screenshot)

    async def step(self, text: str) -> StepResult:
        return replace(await self.env.step(text), reward=0.5)

    async def close(self) -> None:
        await self.env.close()


def _constant_reward(context: Context) -> AbstractContextManager[Any]:
    make = context.scripted
    return patch.object(context, "scripted", lambda: _ConstantReward(make()))


def _no_sync(context: Context) -> AbstractContextManager[Any]:
    """Never give vLLM the weights."""
    return patch("grpo.generators.vllm.engine.VLLMEngine.sync", AsyncMock())


def _no_browser(context: Context) -> AbstractContextManager[Any]:
    """Name a program as Chromium that is another one."""
    return patch.dict(os.environ, {"GRPO_CHROMIUM": sys.executable})


def _idle_oracle(context: Context) -> AbstractContextManager[Any]:
    """Let the oracle do nothing."""

    async def act(observation: Observation, seed: int, env: Env) -> tuple[str, Completion]:
        return "noop()", Completion((), (), (), -1, "stop")

    return patch("grpo.doctor.browser.oracle_agent", lambda: act)


Fault = Callable[[Context], AbstractContextManager[Any]]

FAULTS: dict[str, Fault] = {
    "versions": _old_package,
    "device": _no_device,
    "memory": _no_memory,
    "dtypes": _wrong_products,
    "model": _cut_weights,
    "tree": _wrong_parents,
    "attention": _causal_blocks,
    "generator": _old_weights,
    "speed": _no_gradient,
    "training": _constant_reward,
    "vllm": _no_sync,
    "chromium": _no_browser,
    "episodes": _idle_oracle,
}
"""By the check that it makes fail. The others, "rates" and "step", only say what was measured."""
