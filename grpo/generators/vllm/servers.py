"""vLLM in processes of its own: one or more servers, asked over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from grpo.config import ConfigError
from grpo.generators.base import Generator, GeneratorError, answer_limit
from grpo.generators.vllm.client import PolicySnapshot, ServerUnavailable, VLLMClient
from grpo.generators.vllm.options import (
    PolicyFolders,
    choose_sync,
)
from grpo.model.lora_policy import LoRAPolicy
from grpo.types import Completion


@dataclass(frozen=True)
class _Sampling:
    """What is asked for; requests for equal ones go together."""

    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int


class VLLMServers(Generator):
    """Samples with vLLM servers (see `grpo.generators.base.Generator`).

    Requests of one tick of the event loop with equal prompt, temperature and limit become one
    request with n samples. A prompt goes to the replica that works on the same one, else to the
    one with the least to do. `seed` is not used: vLLM cannot seed a request on a CPU.

    A server that goes away is waited for, given the policy anew, and asked again.

    Attributes:
        busy_seconds: wall time in which at least one request was in work.
        tokens_sampled: tokens of all completions so far.
    """

    def __init__(
        self,
        policy: LoRAPolicy,
        urls: Sequence[str],
        *,
        max_new_tokens: int = 32,
        sync: str = "auto",
        folder: str = "/dev/shm",
        deadline_s: float = 120.0,
    ) -> None:
        """Make a client; the first request or sync is the first that servers hear of it.

        Args:
            policy: what to sample from; read at each `sync`.
            urls: the servers, each with the policy's model in the policy's dtype.
            max_new_tokens: default limit of an answer's length.
            sync: "adapter", "merged", or "auto" for what suits the policy's device.
            folder: where servers read the policy from: the same path here and there.
            deadline_s: seconds that a server may stay away, or take for an answer.

        Raises:
            ConfigError: there is no server.
            GeneratorError: the folder cannot be written.
        """
        if not urls:
            raise ConfigError("vllm_url must name at least one server, got none")
        self.policy, self.max_new_tokens = policy, max_new_tokens
        self._weight_sync = choose_sync(sync, policy.device)
        self.busy_seconds, self.tokens_sampled = 0.0, 0
        self._replicas = [VLLMClient(url, deadline_s) for url in urls]
        self._folders = PolicyFolders(folder)
        self._given: PolicySnapshot | None = None
        self._arrived: dict[_Sampling, list[asyncio.Future[Completion]]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_work: dict[tuple[int, ...], VLLMClient] = {}
        self._busy_since = 0.0
        self._closed = False

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        seed: int,
        temperature: float = 1.0,
        max_new_tokens: int | None = None,
    ) -> Completion:
        """Sample one completion (see `Generator.generate`)."""
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        limit = answer_limit(prompt_ids, limit, self.policy.max_length)
        self._require_open()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Completion] = loop.create_future()
        if not self._arrived:  # sent with all that this tick of the loop brings
            loop.call_soon(self._send)
        sampling = _Sampling(tuple(prompt_ids), temperature, limit)
        self._arrived[sampling].append(done)
        return await done

    async def sync(self) -> None:
        """Give every server the trainer's weights (see `Generator.sync`)."""
        self._require_open()
        folder = await asyncio.to_thread(self._folders.write, self.policy, self._weight_sync)
        self._given = PolicySnapshot(folder, self.policy.version, self._weight_sync)
        await asyncio.gather(*(replica.ready(self._newest) for replica in self._replicas))

    async def sleep(self) -> None:
        """Nothing to do: a server's memory is its own."""

    async def close(self) -> None:
        """Cancel what is in flight and leave the servers without our adapters."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas))
        self._folders.remove()

    def _require_open(self) -> None:
        if self._closed:
            raise GeneratorError("this generator is closed")

    def _send(self) -> None:
        for sampling, waiting in self._arrived.items():
            if not self._tasks:
                self._busy_since = time.monotonic()
            task = asyncio.create_task(self._answer(sampling, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            for done in waiting:
                done.add_done_callback(partial(_cancel_if_alone, task, waiting))
        self._arrived.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self.busy_seconds += time.monotonic() - self._busy_since

    async def _answer(self, sampling: _Sampling, waiting: list[asyncio.Future[Completion]]) -> None:
        """Sample for all who wait for the same."""
        try:
            n = len(waiting) if sampling.temperature else 1  # greedy: one answer is everybody's
            completions = await self._sample(sampling, n)
            self.tokens_sampled += sum(len(c.completion_ids) for c in completions)
            for i, done in enumerate(waiting):
                if not done.done():
                    done.set_result(completions[i % n])
        except asyncio.CancelledError:
            for done in waiting:
                done.cancel()
            raise
        except Exception as error:  # handed to those who wait for an answer
            for done in waiting:
                if not done.done():
                    done.set_exception(error)

    async def _sample(self, sampling: _Sampling, n: int) -> list[Completion]:
        """Ask a replica, and again when it was gone; `VLLMClient.ready` holds the deadline."""
        if self._given is None:
            await self.sync()
        while True:
            replica = self._choose(sampling.prompt_ids)
            self._at_work[sampling.prompt_ids] = replica
            replica.load += n
            try:
                given = await replica.ready(self._newest)
                choices = await replica.complete(
                    given,
                    sampling.prompt_ids,
                    n,
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    stop_token_ids=sorted(self.policy.stop_ids),
                    logprobs=0,  # of the sampled token alone
                    return_token_ids=True,
                )
            except ServerUnavailable as reason:
                replica.lose(reason)
                continue
            finally:
                replica.load -= n
                self._at_work.pop(sampling.prompt_ids, None)
            return [self._completion(sampling, given, choice) for choice in choices]

    def _newest(self) -> PolicySnapshot:
        assert self._given is not None
        return self._given

    def _choose(self, prompt_ids: tuple[int, ...]) -> VLLMClient:
        """The replica that works on this prompt, else the one with the least to do."""
        same = self._at_work.get(prompt_ids)
        if same is not None and same.lost_at is None:
            return same
        return min(self._replicas, key=lambda r: (r.lost_at is not None, r.load))

    def _completion(
        self, sampling: _Sampling, given: PolicySnapshot, choice: dict[str, Any]
    ) -> Completion:
        ids = tuple(choice["token_ids"])
        return Completion(
            prompt_ids=sampling.prompt_ids,
            completion_ids=ids,
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            policy_version=given.version,
            finish_reason="stop" if ids[-1] in self.policy.stop_ids else "length",
        )


def _cancel_if_alone(
    task: asyncio.Task[None], waiting: list[asyncio.Future[Completion]], _: object
) -> None:
    if all(done.cancelled() for done in waiting):  # nobody waits: close the connection
        task.cancel()
