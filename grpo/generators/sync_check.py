"""Check at the start of a run that the generator samples from the policy that is trained.

Weights that never reach the generator cause no error: rollouts continue with an older policy and
the reward does not improve. So the trained weights are changed for a moment, and the
log-probabilities that the generator reports must follow. The generator sleeps meanwhile, as it does
during an update.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from grpo.algorithm.batch import rows_from_completions
from grpo.generators.base import Generator, GeneratorError
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.model.policy import Policy

BOUNDS = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Mean absolute difference of log-probabilities, in nats, that rounding in a dtype explains.

Measured with vLLM's CPU build and the bundled model, with or without an adapter: 1e-5 in float32,
0.04 to 0.06 in bfloat16. float16 has three more bits than bfloat16.
"""

SAMPLES, TOKENS = 8, 8
BUTTONS = "\n".join(f"button 'Number {n}' [{n}]" for n in range(11, 31))
PROMPT = f"Goal: press Ok\n\nPage:\n{BUTTONS}\nbutton 'Ok' [47]\n\nWhat do you do?"
"""Longer than a block of vLLM's prefix cache (128 tokens on a CPU), so a stale cache is noticed."""

Result = TypeVar("Result")


class SyncReport(NamedTuple):
    """Mean absolute differences of log-probabilities, in nats.

    Attributes:
        gap: between generator and trainer.
        changed_gap: between generator and trainer, both with changed weights.
        changed_shift: between the generator with changed weights and the trainer without.
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
    """Check that the generator samples from this policy, before and after a change of it.

    When this returns or raises, the trained weights and `policy.version` are bit for bit what they
    were; when it returns, the generator has them.

    Args:
        policy: the trainer's.
        generator: the generator to check; nothing else may use it meanwhile.
        bound: on the mean absolute difference in nats; 0 for the bound of the policy's dtype.
        temperature: the run's. At a temperature of 1 the check cannot notice a generator that
            reports log-probabilities without the temperature.
        executor: runs torch's work.

    Returns:
        The measured differences.

    Raises:
        GeneratorError: the generator samples from something else; the message says what to do.
        ConfigError: the generator cannot serve the adapter.
    """
    bound = gap_bound(bound, policy.model.dtype)
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
            f"the generator's log-probabilities differ from the trainer's by {gap:.2g} nats per "
            f"token (mean), expected at most {bound:.2g}: it does not compute the same model. It "
            f"must load {policy.name!r} in {policy.model.dtype}, with the options that grpo "
            "serve-vllm sets (for LFM2 on a CPU also custom_ops). A server that was given merged "
            "weights must be restarted; --max-logp-difference allows a larger difference"
        )
    with changed_weights(policy) as change:
        shift = max(0.1, 5 * bound)
        await generator.sleep()  # as before each update
        await run(_change_until, policy, change, before, temperature, shift)
        await generator.sync()
        during = await _sample(policy, generator, temperature)
        changed_gap = await run(differs, during)
    changed_shift = await run(differs, during)  # the trainer has its old weights again
    if not changed_gap <= min(2 * bound, changed_shift / 2):
        raise GeneratorError(
            "the generator does not follow the trained weights: after a change and a sync its "
            f"log-probabilities are {changed_gap:.2g} nats per token from the trainer's and "
            f"{changed_shift:.2g} from the ones before. The change did not reach the generator, "
            "or not in every module: try the other --vllm-sync (adapter or merged)"
        )
    await generator.sleep()
    await generator.sync()
    after = await run(differs, await _sample(policy, generator, temperature))
    if not after <= bound:
        raise GeneratorError(
            "the generator keeps a cache of older weights: after a second sync it is "
            f"{after:.2g} nats per token from the trainer's, {gap:.2g} before: restart it, and if "
            "that does not help, try the other --vllm-sync (adapter or merged)"
        )
    return SyncReport(gap, changed_gap, changed_shift)


def gap_bound(bound: float, dtype: torch.dtype) -> float:
    """Return the gap in nats that is accepted: `bound`, or where it is 0 that of the dtype."""
    return bound or BOUNDS[dtype]


def logprob_gap(
    policy: Policy, completions: Sequence[Completion], temperature: float = 1.0
) -> float:
    """Compute the mean |log p(trainer) - log p(generator)| over the sampled tokens, in nats."""
    reported = torch.tensor([x for c in completions for x in c.logprobs])
    return float((reported - completion_logprobs(policy, completions, temperature)).abs().mean())


@torch.no_grad()
def completion_logprobs(
    policy: Policy, completions: Sequence[Completion], temperature: float = 1.0
) -> Tensor:
    """Compute the log-probabilities of the sampled tokens as the update does.

    Returns:
        [number of tokens of all completions], one completion after the other, on the CPU.
    """
    batch = rows_from_completions(completions)
    logprobs = policy.logprobs(batch, temperature=temperature).logprobs.cpu()
    return logprobs[batch.completion_mask]  # rows in order, each row's tokens in order


@contextmanager
def changed_weights(policy: Policy) -> Iterator[Callable[[float], None]]:
    """Within this context noise can be added to the trained weights; it is removed at the end.

    Yields:
        A function of the noise's standard deviation; its direction is always the same.
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
    shift: float,
) -> None:
    """Add noise that shifts the trainer's own log-probabilities by at least `shift` nats."""
    old = completion_logprobs(policy, completions, temperature)
    std = 2e-3
    while True:
        change(std)
        new = completion_logprobs(policy, completions, temperature)
        if (new - old).abs().mean() >= shift:
            return
        std *= 2
        if std > 10:
            raise GeneratorError(
                "cannot check the generator: no change of the trained weights shifts the log-"
                f"probabilities by {shift:.2g} nats (five times --max-logp-difference)"
            )


async def _sample(policy: Policy, generator: Generator, temperature: float) -> list[Completion]:
    messages = [{"role": "user", "content": PROMPT}]
    prompt = policy.chat.prompt(messages)[-(policy.max_length - TOKENS) :]
    requests = (
        generator.generate(prompt, seed=seed, temperature=temperature, max_new_tokens=TOKENS)
        for seed in range(SAMPLES)
    )
    return list(await asyncio.gather(*requests))
