"""Does the sampler sample from the policy that is trained? Asked at the start of a run.

An adapter that never reaches the sampler raises nothing: rollouts go on from the older policy
and the reward stays where it was. So the adapter is changed for a moment, and the
log-probabilities that the sampler reports must follow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from envs.base import Task
from grpo.algorithm.batch import make_batch
from grpo.generators.base import Generator, GeneratorError
from grpo.model.policy import Policy
from grpo.types import Completion, Episode, Group, Turn

BOUNDS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Mean absolute difference of log-probabilities, in nats, that the dtype explains.

Measured with vLLM's CPU build and the bundled model: 1e-5 in float32, 0.04 to 0.06 in bfloat16,
adapter or not. float16 has three more bits than bfloat16.
"""

SAMPLES, TOKENS = 8, 8
BUTTONS = "\n".join(f"button 'Number {n}' [{n}]" for n in range(11, 31))
PROBE = f"Goal: press Ok\n\nPage:\n{BUTTONS}\nbutton 'Ok' [47]\n\nWhat do you do?"
"""Longer than a block of vLLM's prefix cache (128 tokens on a CPU): an older one would show."""

Result = TypeVar("Result")


class SyncReport(NamedTuple):
    """Mean absolute differences of log-probabilities in nats.

    Attributes:
        gap: between sampler and trainer.
        changed_gap: the same under a changed adapter.
        changed_shift: between the sampler under the changed adapter and the trainer without.
    """

    gap: float
    changed_gap: float
    changed_shift: float


async def check_sync(
    policy: Policy,
    generator: Generator,
    bound: float = 0.0,
    *,
    temperature: float = 1.0,
    executor: Executor | None = None,
) -> SyncReport:
    """Check that the generator samples from this policy, and from this policy's next version.

    What is trained is as it was when this returns or raises, bit for bit, and so is its version;
    where it returns, the generator has it.

    Args:
        policy: the trainer's.
        generator: to be tested; nobody else may use it meanwhile.
        bound: on the mean absolute difference in nats; 0 for that of the policy's dtype.
        temperature: of the run. A sampler that leaves it out of what it reports is caught by
            a temperature other than 1 alone.
        executor: where torch's work is done.

    Raises:
        GeneratorError: the generator samples from something else; the message says what to do.
        ConfigError: it cannot serve the adapter.
    """
    bound = bound or BOUNDS[policy.model.dtype]
    loop = asyncio.get_running_loop()

    async def run(function: Callable[..., Result], *arguments: object) -> Result:
        return await loop.run_in_executor(executor, lambda: function(*arguments))

    def differs(completions: Sequence[Completion]) -> float:
        return logprob_gap(policy, completions, temperature)

    await generator.sync()
    before = await _sample(policy, generator, temperature)
    gap = await run(differs, before)
    if not gap <= bound:  # NaN is a failure too
        raise GeneratorError(
            f"the sampler's log-probabilities differ from the trainer's by {gap:.2g} nats a token "
            f"(mean), at most {bound:.2g} was expected: it does not compute the same model. "
            f"It must load {policy.name!r} in {policy.model.dtype}, with the options that `make "
            "serve` sets (for LFM2 on a CPU custom_ops too). A server that was given merged "
            "weights must be started anew; --max-logp-difference allows more"
        )
    with changed_adapter(policy) as change:
        moved = max(0.1, 5 * bound)
        await run(_change_until, policy, change, before, temperature, moved)
        await generator.sync()
        during = await _sample(policy, generator, temperature)
        changed_gap = await run(differs, during)
    changed_shift = await run(differs, during)  # the trainer's policy is the old one again
    if not changed_gap <= min(2 * bound, changed_shift / 2):
        raise GeneratorError(
            "the sampler does not follow the adapter: after a change of it and a sync the "
            f"log-probabilities are {changed_gap:.2g} nats a token from the trainer's and "
            f"{changed_shift:.2g} from what they were before. The adapter did not reach the "
            "sampler, or not every module: try the other --vllm-sync (adapter or merged)"
        )
    await generator.sync()
    after = await run(differs, await _sample(policy, generator, temperature))
    if not after <= bound:
        raise GeneratorError(
            f"the sampler kept something of an older adapter: {after:.2g} nats a token from the "
            f"trainer's after a second sync, {gap:.2g} before: restart it, and if this stays try "
            "the other --vllm-sync (adapter or merged)"
        )
    return SyncReport(gap, changed_gap, changed_shift)


def logprob_gap(
    policy: Policy, completions: Sequence[Completion], temperature: float = 1.0
) -> float:
    """Mean |log p(trainer) - log p(sampler)| over the sampled tokens, in nats."""
    reported = torch.tensor([x for c in completions for x in c.logprobs])
    return float((reported - completion_logprobs(policy, completions, temperature)).abs().mean())


@torch.no_grad()
def completion_logprobs(
    policy: Policy, completions: Sequence[Completion], temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of the sampled tokens, one after the other, as the update computes them.

    Returns:
        [number of tokens of all completions], on the CPU.
    """
    task = Task("probe", 0)
    episodes = tuple(
        Episode(task, (Turn(completion, "", True),), 0.0, False, "done")
        for completion in [*completions, completions[0]]  # a group has two episodes at least
    )
    batch = make_batch([Group(task, episodes)])
    assert batch is not None  # no row was asked to be dropped
    batch = batch.select(range(len(completions)))
    logprobs = policy.logprobs(batch, temperature=temperature).logprobs.cpu()
    return logprobs[batch.completion_mask]  # rows in order, each row's tokens in order


@contextmanager
def changed_adapter(policy: Policy) -> Iterator[Callable[[float], None]]:
    """Within it the adapter is another: itself plus noise of a size; then it is as it was.

    Yields:
        A function that sets the noise's standard deviation, always in the same direction.
    """
    parameters, version = policy.parameters(), policy.version
    saved = [p.detach().clone() for p in parameters]
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(p.shape, generator=random).to(p) for p in parameters]

    @torch.no_grad()
    def change(std: float) -> None:
        for p, old, direction in zip(parameters, saved, noise, strict=True):
            p.copy_(old + std * direction)
        policy.copy_masters_to_model()
        policy.version += 1

    try:
        yield change
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, saved, strict=True):
                p.copy_(old)
        policy.copy_masters_to_model()
        policy.version = version


def _change_until(
    policy: Policy,
    change: Callable[[float], None],
    completions: Sequence[Completion],
    temperature: float,
    moved: float,
) -> None:
    """Find noise that moves the trainer's own log-probabilities by `moved` nats or more."""
    old = completion_logprobs(policy, completions, temperature)
    std = 2e-3
    while True:
        change(std)
        new = completion_logprobs(policy, completions, temperature)
        if (new - old).abs().mean() >= moved:
            return
        std *= 2
        if std > 10:
            raise GeneratorError(
                f"the adapter cannot be tested: no change of its weights moves the log-"
                f"probabilities by {moved:.2g} nats (five times --max-logp-difference)"
            )


async def _sample(policy: Policy, generator: Generator, temperature: float) -> list[Completion]:
    messages = [{"role": "user", "content": PROBE}]
    prompt = policy.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    prompt = prompt[-(policy.max_length - TOKENS) :]
    requests = (
        generator.generate(prompt, seed=seed, temperature=temperature, max_new_tokens=TOKENS)
        for seed in range(SAMPLES)
    )
    return list(await asyncio.gather(*requests))
