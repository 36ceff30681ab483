"""What a generator promises: token ids in, sampled token ids and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.types import Completion


class GeneratorError(RuntimeError):
    """The generator failed (its process, its connection), not the policy."""


def answer_limit(
    prompt_ids: Sequence[int], limit: int, max_length: int, *, bound: str = "the model's limit"
) -> int:
    """How many tokens may be sampled after a prompt, at most `limit`.

    Args:
        prompt_ids: the prompt.
        limit: what was asked for.
        max_length: tokens of prompt and answer together that fit.
        bound: what `max_length` is, for the error.

    Raises:
        ValueError: the prompt is empty or leaves no room for an answer, or the limit is below 1.
    """
    room = max_length - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise ValueError(
            f"expected a prompt of 1 to {max_length - 1} tokens ({bound} less one for the answer), "
            f"got {len(prompt_ids)}"
        )
    if limit < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {limit}")
    return min(limit, room)


class Generator:
    """Samples completions from the current policy; batching is its own affair.

    Attributes:
        busy_seconds: wall time in which at least one request was in work.
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
            seed: fixes what is sampled, given the policy, where the generator can.
            temperature: 0 takes the likeliest token each time (greedy).
            max_new_tokens: limit of sampled tokens; None for the generator's own.

        Returns:
            The completion, its log-probabilities those of the distribution sampled from
            (for greedy, of the distribution at temperature 1).

        Raises:
            ValueError: the prompt leaves no room for an answer.
            GeneratorError: the generator failed.
        """
        raise NotImplementedError

    async def sync(self) -> None:
        """Sample from the trainer's policy as it is now; called after every update.

        Requests made after it returns are answered by this version; those in flight may end
        on the version that they began with, which their completions name. Nothing to do for a
        generator that reads the trainer's own policy.

        Raises:
            GeneratorError: the generator failed.
        """

    async def sleep(self) -> None:
        """Give the accelerator's memory back until the next request or sync, where it can.

        Called before an update, with no request in flight.
        """

    async def close(self) -> None:
        """End what the generator started; requests in flight are cancelled."""
