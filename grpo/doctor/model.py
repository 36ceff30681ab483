"""Checks of the model: it loads, and tree, padded rows, update and generators agree on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.algorithm.batch import rows_from_completions, sort_batch
from grpo.distributed import World
from grpo.doctor.context import GROUP_SIZE, GROUPS, TOKENS, Context, Failed, Skipped
from grpo.doctor.rates import synchronize
from grpo.errors import ConfigError
from grpo.generators.base import Generator, GeneratorError
from grpo.generators.factory import check_backend, open_generator
from grpo.generators.local import LocalGenerator
from grpo.generators.sync_check import changed_weights, check_sync, logprob_gap
from grpo.model.forward import ForwardMode
from grpo.model.loading import load_policy
from grpo.model.policy import Policy
from grpo.rollouts.gather import gather
from grpo.threads import sampling_threads
from grpo.training.updater import Updater
from grpo.tree.token_tree import count_distinct
from grpo.types import Completion, TokenBatch

MOST_NATS, MOST_GRADIENT = 1e-3, 1e-3
"""Largest difference between tree and padded rows in float32: of a log-probability, and of the
gradient in proportion to it. On a CPU 3e-5 of both were measured with the bundled model."""


def model(context: Context) -> str:
    """Load the model as a run does, which holds everything computed against its own forward."""
    started = time.monotonic()
    config = context.config
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        context.policy = policy = load_policy(config)
    seconds = time.monotonic() - started
    count = sum(p.numel() for p in policy.model.parameters()) / 1e6
    notes = [str(w.message) for w in warned if w.category is UserWarning]
    return "; ".join(
        [
            f"{config.model or 'the bundled model'}: {count:.3g} M parameters in {config.dtype}, "
            f"forward={policy.forward_mode}, loaded and held against its own forward pass in "
            f"{seconds:.1f} s",
            *notes,
        ]
    )


def tree(context: Context) -> str:
    """Compare the update over the token tree, or packed rows, with padded rows, in float32."""
    chosen = context.policy.forward_mode
    if chosen == "padded" and not context.policy.packed:
        raise Skipped("this model is computed over padded rows (docs/models.md lists which are)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the check "model" has shown them
        policy = load_policy(context.config.replace(dtype="float32", forward=chosen))
    batch = _random_rows(policy)
    updater = Updater(context.config, policy, World.single())
    some = count_distinct(batch.rows()) * 2 // 3  # several micro-batches with a shared prefix
    ways: list[tuple[ForwardMode, bool, int]]
    ways = [(chosen, policy.packed, some), ("padded", False, updater.max_tokens)]
    logprobs: list[Tensor] = []
    gradients: list[Tensor] = []
    with changed_weights(policy) as change:
        change(0.02)  # an adapter of zeros has no gradient at A
        for policy.forward_mode, policy.packed, updater.max_tokens in ways:
            logprobs.append(updater.logprobs(batch)[batch.completion_mask])
            updater.accumulate(batch)
            parts = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
            gradients.append(torch.cat(parts))
    nats = float((logprobs[0] - logprobs[1]).abs().max())
    gradient = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    context.measured |= {"tree_nats": nats, "tree_gradient": gradient}
    found = (
        f"{'packed rows: ' if chosen == 'padded' else ''}log-probabilities {nats:.1g} nats from "
        f"padded rows, LoRA gradients {gradient:.1g} of their norm"
    )
    if not (nats <= MOST_NATS and gradient <= MOST_GRADIENT):  # NaN is a failure, too
        raise Failed(
            f"{found}, expected at most {MOST_NATS:g} and {MOST_GRADIENT:g}: train with "
            "--forward padded, and report it"
        )
    return found


def _random_rows(policy: Policy) -> TokenBatch:
    """Make rows of two prompts with four completions each, some of which begin alike."""
    random = torch.Generator().manual_seed(0)
    vocabulary = policy.model.get_input_embeddings().weight.shape[0]

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (count,), generator=random).tolist())

    completions = []
    for goal in ("Ok", "Cancel"):
        messages = [{"role": "user", "content": f"Button 'Ok' [47]\nPress {goal}."}]
        prompt = tuple(policy.chat.prompt(messages)[: policy.max_length - TOKENS])
        start = ids(3)
        for tokens in (ids(2), start + ids(1), start + ids(6), start + ids(TOKENS - 3)):
            completions.append(Completion(prompt, tokens, (0.0,) * len(tokens), 0, "length"))
    return _batch(completions)


def _batch(completions: Sequence[Completion]) -> TokenBatch:
    """Lay completions out for an update, with advantages of both signs."""
    n = len(completions)
    advantages = torch.linspace(-1, 1, n)
    weights = torch.full((n,), 1 / (TOKENS * n))
    return sort_batch(rows_from_completions(completions, advantages, weights))


async def generator(context: Context) -> str:
    """Compare the generator's log-probabilities with the update's, before and after a change."""
    config = context.config
    try:
        report = await check_sync(
            context.policy,
            _local(context),
            temperature=config.temperature,
            executor=context.executor,
        )
    except GeneratorError as error:
        raise Failed(f"local generator: {str(error).partition('. ')[0]}: report it") from error
    context.measured["generator_gap_nats"] = report.gap
    return (
        f"{report.gap:.1g} nats per token from the update in {config.dtype}; after a change of the "
        f"weights by {report.changed_shift:.2g} nats {report.changed_gap:.1g}"
    )


def _local(context: Context) -> LocalGenerator:
    config = context.config
    return LocalGenerator(
        context.policy,
        max_new_tokens=config.max_completion_tokens,
        executor=context.executor,
        cache_tokens=config.cache_tokens,
        threads=sampling_threads(config.sampling_threads),
    )


async def speed(context: Context) -> str:
    """Time the generation and the update of a step: 4 groups of 8 short completions."""
    policy, config, local = context.policy, context.config, _local(context)
    updater = Updater(config, policy, World.single())

    def update() -> float:
        started = time.perf_counter()
        if config.uses_reference:
            with policy.reference():
                updater.logprobs(batch)
        updater.accumulate(batch)
        synchronize(context.device)
        return time.perf_counter() - started

    # An accelerator loads its kernels in the first pass.
    for _ in range(1 if policy.device.type == "cpu" else 2):
        policy.version += 1  # the cache is empty, as after an update
        started = time.perf_counter()
        completions = await _sample(local, policy)
        generate = time.perf_counter() - started
        batch = _batch(completions)
        seconds = await context.run(update)
    if not all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters()):
        raise Failed(
            f"the update's gradient is not finite in {config.dtype}: give --dtype bfloat16, or "
            "float32"
        )
    tokens = sum(len(c.completion_ids) for c in completions)
    distinct = count_distinct(batch.rows())
    context.measured |= {
        "generation_s": generate,
        "generated_tokens_per_s": tokens / generate,
        "update_s": seconds,
        "update_tokens_per_s": distinct / seconds,
    }
    return (
        f"{len(completions)} completions in {generate:.2g} s ({tokens / generate:.0f} tokens per "
        f"second), their update in {seconds:.2g} s ({distinct} distinct tokens)"
    )


async def _sample(generator: Generator, policy: Policy) -> list[Completion]:
    """Sample the completions of a step on pages as long as click-test's: 320 tokens, half shared.

    (Of SmolLM2's tokens.)
    """
    requests = []
    for group in range(GROUPS):
        messages = [
            {"role": "user", "content": _page(10)},
            {"role": "assistant", "content": "click('10')"},
            {"role": "user", "content": _page(12 + group)},
        ]
        prompt = policy.chat.prompt(messages)[-(policy.max_length - TOKENS) :]
        requests += [
            generator.generate(prompt, seed=GROUP_SIZE * group + n, max_new_tokens=TOKENS)
            for n in range(GROUP_SIZE)
        ]
    return await gather(requests)


def _page(number: int) -> str:
    buttons = "\n".join(f"button 'Number {number}{n}' [{number}{n}]" for n in range(8))
    return f"Goal: press Ok\n\nPage:\n{buttons}\nbutton 'Ok' [{number}]\n\nWhat do you do?"


async def vllm(context: Context) -> str:
    """Start vLLM in this process and let it pass the sync check, if it is installed."""
    config = context.config.replace(backend="vllm")
    try:
        check_backend(config, World.single())
    except ConfigError as error:
        raise Skipped(str(error)) from error
    started = time.monotonic()
    async with open_generator(config, context.policy, context.executor) as engine:
        ready = time.monotonic() - started
        started = time.monotonic()
        completions = await _sample(engine, context.policy)
        rate = sum(len(c.completion_ids) for c in completions) / (time.monotonic() - started)
        gap = await context.run(logprob_gap, context.policy, completions)
    context.measured |= {"vllm_gap_nats": gap, "vllm_tokens_per_s": rate}
    return (
        f"started and passed the sync check in {ready:.0f} s: {gap:.1g} nats per token from the "
        f"update, {rate:.0f} tokens per second"
    )
