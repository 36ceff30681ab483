"""The contract of generators: token ids in, sampled ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.types import Completion


class GeneratorError(RuntimeError):
    """A failure of the generator (its process or connection), not of the policy."""


def completion_limit(
    prompt_ids: Sequence[int], limit: int, max_length: int, *, bound: str = "the model's limit"
) -> int:
    """Limit a completion's length to what fits after its prompt.

    Args:
        prompt_ids: the prompt.
        limit: the limit that was asked for.
        max_length: limit of prompt and completion together.
        bound: describes `max_length` in the error.

    Returns:
        The number of tokens that may be sampled, at most `limit`.

    Raises:
        ValueError: the prompt is empty or leaves no token for a completion, or the limit is
            below 1.
    """
    left = max_length - len(prompt_ids)
    if not prompt_ids or left < 1:
        raise ValueError(
            f"expected a prompt of 1 to {max_length - 1} tokens ({bound} less one for the "
            f"completion), got {len(prompt_ids)}"
        )
    if limit < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {limit}")
    return min(limit, left)


class Generator:
    """Samples completions from the current policy and decides by itself how to batch them.

    Attributes:
        busy_seconds: wall time with at least one request in flight.
    """

    busy_seconds: float = 0.0

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        seed: int,
        temperature: float = 1.0,
        max_new_tokens: int | None = None,
    ) -> Completion:
        """Sample one completion.

        Args:
            prompt_ids: the tokens of the chat so far.
            seed: where the generator supports it, determines the samples of a given policy.
            temperature: 0 takes the likeliest token each time (greedy).
            max_new_tokens: limit of sampled tokens; None for the generator's default.

        Returns:
            The completion with log-probabilities of the distribution that it was sampled from
            (of the one at temperature 1 if greedy).

        Raises:
            ValueError: the prompt leaves no token for a completion.
            GeneratorError: the generator failed.
        """
        raise NotImplementedError

    async def sync(self) -> None:
        """Sample from the trainer's policy as it is now; called after every update.

        Later requests are sampled from this version. Requests in flight may finish with the
        version that they started with, which their completions name. A generator that reads the
        trainer's own policy has nothing to do.

        Raises:
            GeneratorError: the generator failed.
        """

    async def sleep(self) -> None:
        """Free the accelerator's memory until the next request or sync, where supported.

        Called before an update, with no request in flight.
        """

    async def close(self) -> None:
        """Stop everything that the generator started; requests in flight are cancelled."""
