"""Do GRPO steps for `benchmarks/step.py`: with this project, or with TRL, PEFT and BrowserGym.

Does one step per line of standard input, which holds a JSON request, and writes one JSON response
per step. Output of libraries goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.rollouts_worker import BrowserGym, lay_out_chromium
from benchmarks.update_worker import LORA, matrix_rate
from envs.browser.actions import InvalidAction, format_action, parse_action
from envs.browser.page_text import format_page, simplify_axtree
from envs.browser.prompts import ActionPrompt
from envs.browser.server.processes import marked
from envs.replay import SharingPool
from grpo.algorithm.batch import make_batch
from grpo.doctor.rates import seconds_per_call
from grpo.model.policy import Policy
from grpo.rollouts.task_sampler import TaskSampler
from grpo.training.trainer import TrainingStep
from grpo.tree.token_tree import count_distinct
from tests.support.workloads import floor_operations

MARK = "GRPO_BENCHMARK"
STEPS = 100
"""Steps that TRL has prompts for: more than a comparison takes."""

LEARNING_RATE = 1e-9
"""The policy stays as it is, so that every step of every implementation does the same work."""


class Meter:
    """Seconds, processor seconds and peak memory of a step.

    Args:
        mark: value of the environment variable that this process's children inherit.
    """

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}"
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        with suppress(OSError):  # not on Linux
            Path("/proc/self/clear_refs").write_text("5")
        self._cpu, self._started = self._processors(), time.perf_counter()

    def end(self) -> dict[str, float]:
        """Return the figures of the step; the peak is this process's, without browsers."""
        seconds, cpu = time.perf_counter() - self._started, self._processors() - self._cpu
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        return {"seconds": seconds, "cpu_seconds": cpu, "peak": peak}

    def _processors(self) -> float:
        """Return the processor seconds of this process, its children and those that ended."""
        ticks = 0
        for pid in {os.getpid(), *marked(self._mark)}:
            with suppress(OSError):  # it has ended
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))  # user and system, its own and its children's
        return ticks / os.sysconf("SC_CLK_TCK")


async def ours(arguments: argparse.Namespace, meter: Meter, responses: Any) -> None:
    """Do steps with this project."""
    from envs.browser.pool import BrowserPool
    from grpo.config import Config
    from grpo.rollouts.rollout import Rollouts
    from grpo.runtime import open_runtime
    from grpo.training.trainer import Trainer

    config = Config(
        task=arguments.task,
        model=arguments.model,
        dtype=arguments.dtype,
        groups_per_step=arguments.groups,
        group_size=arguments.group_size,
        max_turns=1,
        max_new_tokens=arguments.max_new_tokens,
        learning_rate=LEARNING_RATE,
        log_kl=False,
        lora_r=LORA["r"],
        lora_alpha=float(LORA["alpha"]),
        save_every=0,
        output=arguments.output,
    )
    async with open_runtime(config, BrowserPool(config)) as runtime:
        rollouts = Rollouts(runtime.pool, runtime.decodings["sampled"], 1)
        trainer = Trainer(config, runtime.policy, runtime.generator, rollouts, runtime.executor)
        counters = runtime.pool.counters if isinstance(runtime.pool, SharingPool) else {}
        async with aclosing(trainer.train()) as steps:
            before, executed = dict(trainer.seconds), counters.get("episodes_executed", 0)
            await asyncio.to_thread(next_request)  # meanwhile the sessions are kept alive
            meter.begin()
            async for step in steps:
                figures = meter.end()
                phases = ("rollout", "generate", "update", "sync")
                figures |= {name: trainer.seconds[name] - before[name] for name in phases}
                figures["executed"] = counters.get("episodes_executed", 0) - executed
                figures |= await trainer.in_executor(floors, runtime.policy, step)
                rewards = [e.reward for group in step.groups for e in group.episodes]
                respond(responses, figures, rewards)
                before, executed = dict(trainer.seconds), counters.get("episodes_executed", 0)
                await asyncio.to_thread(next_request)
                meter.begin()


def floors(policy: Policy, step: TrainingStep) -> dict[str, float]:
    """Return the seconds that a step's rollouts and update need at this machine's own rates.

    Rollouts: the matrix products of the distinct prompt tokens, and for every decoding step the
    bytes of the weights from memory. Update: see `tests.support.workloads.floor_operations`.
    """
    config, weights = policy.model.config, list(policy.model.parameters())
    dtype, device = policy.model.dtype, str(policy.device)
    rate = matrix_rate(device, dtype, config)
    table = torch.randn(config.vocab_size, config.hidden_size).to(dtype)
    row = torch.randn(1, config.hidden_size).to(dtype)
    size = table.numel() * table.element_size()
    bandwidth = size / seconds_per_call(partial(torch.nn.functional.linear, row, table), device)

    turns = [turn for group in step.groups for each in group.episodes for turn in each.turns]
    prompt_tokens = count_distinct([list(turn.completion.prompt_ids) for turn in turns])
    linear = sum(p.numel() for p in weights if p.dim() == 2) - table.numel()
    decoding_steps = max(len(turn.completion.completion_ids) for turn in turns)
    loaded = sum(p.numel() * p.element_size() for p in weights)
    batch = make_batch(step.groups, step.advantages)
    operations = 0.0 if batch is None else floor_operations(batch, config, LORA["r"])
    return {
        "generate_floor": 2 * prompt_tokens * linear / rate + decoding_steps * loaded / bandwidth,
        "update_floor": operations / rate,
    }


def trl(arguments: argparse.Namespace, meter: Meter, responses: Any) -> None:
    """Do steps with TRL's GRPOTrainer and PEFT, whose rollouts use stock BrowserGym."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    episodes = arguments.groups * arguments.group_size
    sampler = TaskSampler([arguments.task])
    tasks = [task for n in range(STEPS) for task in sampler.draw(n, arguments.groups)]
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    envs = [
        ProcessPoolExecutor(1, get_context("spawn"), _begin_env, (arguments.task,))
        for _ in range(arguments.envs)
    ]
    rollout_seconds = 0.0

    def encode(messages: list[dict[str, str]]) -> list[int]:
        text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        ids: list[int] = text["input_ids"]
        return ids

    def play(seeds: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Play one episode per seed, as many at once as there are environments."""
        nonlocal rollout_seconds
        started = time.perf_counter()
        output: dict[str, list[Any]] = {
            name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "reward")
        }
        for first in range(0, len(seeds), len(envs)):
            playing = list(zip(envs, seeds[first : first + len(envs)], strict=False))
            pages = [env.submit(_reset, arguments.task, int(seed)) for env, seed in playing]
            prompts = [encode(page.result()) for page in pages]
            ids, logprobs = trainer._generate_single_turn(prompts, None, {}, 1)
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            done = [env.submit(_step, text) for (env, _), text in zip(playing, texts, strict=True)]
            output["prompt_ids"] += prompts
            output["completion_ids"] += ids
            # Without vLLM there are none: TRL takes the trained policy's own.
            output["logprobs"] += logprobs or [[0.0] * len(each) for each in ids]
            output["reward"] += [each.result() for each in done]
        rollout_seconds += time.perf_counter() - started
        return output

    rewards: list[float] = []

    def reward_of(reward: list[float], **_: Any) -> list[float]:
        rewards.extend(reward)
        return reward

    class Turns(TrainerCallback):
        """Waits for a request before each step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal rollout_seconds
            next_request()
            rollout_seconds = 0.0
            rewards.clear()
            meter.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            figures = meter.end()
            phases = {"rollout": rollout_seconds, "update": figures["seconds"] - rollout_seconds}
            respond(responses, figures | phases, rewards)

    dtype = getattr(torch, arguments.dtype)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype),
        reward_funcs=reward_of,
        args=GRPOConfig(
            output_dir=arguments.output,
            use_cpu=True,
            bf16=False,
            beta=0.0,
            loss_type="dapo",
            learning_rate=LEARNING_RATE,
            num_generations=arguments.group_size,
            per_device_train_batch_size=arguments.rows,
            gradient_accumulation_steps=episodes // arguments.rows,
            max_completion_length=arguments.max_new_tokens,
            num_train_epochs=1,
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="no",
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"prompt": [str(task.seed) for task in tasks]}),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear", lora_dropout=0.0
        ),
        rollout_func=play,
        callbacks=[Turns()],
    )
    trainer.train()


_env: BrowserGym | None = None  # of a process of its own
_ids: set[str] = set()


def _begin_env(task: str) -> None:
    global _env
    folder = tempfile.mkdtemp(prefix="grpo-step-")
    lay_out_chromium(Path(folder))
    _env = BrowserGym({})


def _reset(task: str, seed: int) -> list[dict[str, str]]:
    """Start an episode; return the messages that our own environment makes of such a page."""
    assert _env is not None
    goal, text, _, _ = _env._reset(task, seed)
    elements = simplify_axtree(text)
    _ids.clear()
    _ids.update(element.id for element in elements if element.id)
    return list(ActionPrompt().messages(goal, format_page(elements, {}), (), ""))


def _step(text: str) -> float:
    """Execute a completion's action and return its reward; 0 for one that is none."""
    assert _env is not None
    try:
        action = parse_action(text)
    except InvalidAction:
        return 0.0
    if not _ids.issuperset(action.ids):
        return 0.0
    return _env._step(format_action(action))[2]


def next_request() -> None:
    """Wait for the next request; after the last end this process, and those that it started."""
    if not sys.stdin.readline():
        for pid in marked(f"{MARK}={os.environ[MARK]}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        os._exit(0)


def respond(responses: Any, figures: dict[str, float], rewards: list[float]) -> None:
    """Write the figures of a step."""
    mean = sum(rewards) / len(rewards)
    print(json.dumps({**figures, "episodes": len(rewards), "reward": mean}), file=responses)


def main() -> None:
    """Do steps until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=["ours", "trl"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2, help="TRL's rows per micro-batch")
    parser.add_argument("--envs", type=int, default=1, help="TRL's environments at once")
    arguments = parser.parse_args()

    responses = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.manual_seed(0)
    os.environ[MARK] = mark = Path(arguments.output).name
    meter = Meter(mark)
    print("{}", file=responses)
    if arguments.implementation == "ours":
        with asyncio.Runner() as runner:
            runner.get_loop().set_default_executor(ThreadPoolExecutor(4))
            runner.run(ours(arguments, meter, responses))
    else:
        trl(arguments, meter, responses)


if __name__ == "__main__":
    main()
