"""Sampling with one or more vLLM servers over HTTP."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from grpo.errors import ConfigError
from grpo.generators.base import Generator, GeneratorError, completion_limit
from grpo.generators.vllm.client import VLLMClient
from grpo.generators.vllm.connection import ServerUnavailable
from grpo.generators.vllm.lease import Holder
from grpo.generators.vllm.options import choose_sync
from grpo.generators.vllm.snapshots import PolicyFolders, PolicySnapshot
from grpo.option_values import short
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.model.policy import Policy


@dataclass(frozen=True)
class _Request:
    """A request for samples; equal ones are sent together."""

    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int


class VLLMServers(Generator):
    """Samples with vLLM servers (see `grpo.generators.base.Generator`).

    Equal requests of one tick of the event loop become one request with n samples. A prompt goes
    to a server that works on it already, else to the one with the least load. `seed` is not used.

    The servers belong to this generator until it is closed: others are refused. An unavailable
    server is waited for, given the policy again, and asked again.

    Attributes:
        busy_seconds: wall time with at least one request in flight.
        tokens_sampled: tokens of all completions so far.
    """

    def __init__(
        self,
        policy: Policy,
        urls: Sequence[str],
        *,
        max_new_tokens: int = 32,
        weight_sync: str = "auto",
        folder: str = "/dev/shm",
        deadline_s: float = 120.0,
        run: str = "a run",
    ) -> None:
        """Make the clients; they connect at the first request or sync.

        Args:
            policy: the policy to sample from, which has an adapter; read at each `sync`.
            urls: addresses of servers with the policy's model in the policy's dtype.
            max_new_tokens: default limit of a completion's length.
            weight_sync: "adapter", "merged", or "auto" to choose by the policy's device.
            folder: folder through which servers read the policy, at the same path for all.
            deadline_s: seconds that a server may be unavailable, or take for a response.
            run: names the run to others that ask for its servers.

        Raises:
            ConfigError: there is no server.
            GeneratorError: the folder cannot be written.
        """
        if not urls:
            raise ConfigError("vllm_url must name at least one server, got none")
        self.policy, self.max_new_tokens, self._closed = policy, max_new_tokens, False
        self._weight_sync = choose_sync(weight_sync, policy.device)
        self.busy_seconds, self._busy_since, self.tokens_sampled = 0.0, 0.0, 0
        self._folders = PolicyFolders(folder)
        root = self._folders.root
        name = f"{run} (process {os.getpid()} on {socket.gethostname()})"
        holder = Holder(root.name, name, str(root))
        self._clients = [VLLMClient(url, deadline_s, holder) for url in urls]
        self._snapshot: PolicySnapshot | None = None
        self._arrived: dict[_Request, list[asyncio.Future[Completion]]] = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client_of: dict[tuple[int, ...], VLLMClient] = {}

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
        limit = completion_limit(prompt_ids, limit, self.policy.max_length)
        self._require_open()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Completion] = loop.create_future()
        if not self._arrived:  # send all requests of this tick of the loop together
            loop.call_soon(self._send)
        request = _Request(tuple(prompt_ids), temperature, limit)
        self._arrived[request].append(done)
        return await done

    async def sync(self) -> None:
        """Give every server the trainer's weights (see `Generator.sync`)."""
        self._require_open()
        folder = await asyncio.to_thread(self._folders.write, self.policy, self._weight_sync)
        self._snapshot = PolicySnapshot(folder, self.policy.version, self._weight_sync)
        await asyncio.gather(*(client.ready(self._newest) for client in self._clients))

    async def sleep(self) -> None:
        """Do nothing: servers keep their memory."""

    async def close(self) -> None:
        """Cancel requests in flight and unload the policy from the servers."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in self._clients))
        self._folders.remove()

    def _require_open(self) -> None:
        if self._closed:
            raise GeneratorError("this generator is closed")

    def _send(self) -> None:
        for request, waiting in self._arrived.items():
            if not self._tasks:
                self._busy_since = time.monotonic()
            task = asyncio.create_task(self._complete(request, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            for done in waiting:
                done.add_done_callback(partial(_cancel_if_alone, task, waiting))
        self._arrived.clear()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self.busy_seconds += time.monotonic() - self._busy_since

    async def _complete(self, request: _Request, waiting: list[asyncio.Future[Completion]]) -> None:
        """Sample the completions of all futures that wait for equal requests."""
        try:
            n = len(waiting) if request.temperature else 1  # greedy: one completion for all
            completions = await self._sample(request, n)
            self.tokens_sampled += sum(len(c.completion_ids) for c in completions)
            for i, done in enumerate(waiting):
                if not done.done():
                    done.set_result(completions[i % n])
        except asyncio.CancelledError:
            for done in waiting:
                done.cancel()
            raise
        except Exception as error:  # passed on to the waiting requests
            for done in waiting:
                if not done.done():
                    done.set_exception(error)

    async def _sample(self, request: _Request, n: int) -> list[Completion]:
        """Ask a server until one responds; `VLLMClient.ready` enforces the deadline."""
        if self._snapshot is None:
            await self.sync()
        while True:
            client = self._choose(request.prompt_ids)
            self._client_of[request.prompt_ids] = client
            client.load += n
            try:
                snapshot = await client.ready(self._newest)
                choices = await client.complete(
                    snapshot,
                    request.prompt_ids,
                    n,
                    temperature=request.temperature,
                    max_tokens=request.max_new_tokens,
                    stop_token_ids=sorted(self.policy.stop_ids),
                    logprobs=0,  # of the sampled token only
                    return_token_ids=True,
                )
            except ServerUnavailable as reason:
                client.mark_unavailable(reason)
                continue
            finally:
                client.load -= n
                self._client_of.pop(request.prompt_ids, None)
            if (got := len(choices)) != n:
                raise GeneratorError(
                    f"vLLM at {client.url} must respond with {n} choices, got {got}"
                )
            return [self._completion(request, snapshot, choice) for choice in choices]

    def _newest(self) -> PolicySnapshot:
        assert self._snapshot is not None
        return self._snapshot

    def _choose(self, prompt_ids: tuple[int, ...]) -> VLLMClient:
        """Choose the server that is working on this prompt, else the one with the least load."""
        same = self._client_of.get(prompt_ids)
        if same is not None and same.unavailable_since is None:
            return same
        return min(self._clients, key=lambda c: (c.unavailable_since is not None, c.load))

    def _completion(
        self, request: _Request, snapshot: PolicySnapshot, choice: dict[str, Any]
    ) -> Completion:
        ids, logprobs = _read_choice(choice, request.max_new_tokens)
        return Completion(
            prompt_ids=request.prompt_ids,
            completion_ids=ids,
            logprobs=logprobs,
            policy_version=snapshot.version,
            finish_reason="stop" if ids[-1] in self.policy.stop_ids else "length",
        )


def _read_choice(choice: Any, limit: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the tokens of a choice and their log-probabilities.

    Raises:
        GeneratorError: it has none, or others than were asked for.
    """
    try:
        ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        is_right = 0 < len(ids) == len(logprobs) <= limit and all(map(math.isfinite, logprobs))
        if is_right and all(type(i) is int and i >= 0 for i in ids):
            return tuple(ids), tuple(map(float, logprobs))
    except (LookupError, TypeError):
        pass
    raise GeneratorError(
        f"a vLLM server must respond with up to {limit} tokens and their log-probabilities, got "
        f"{short(choice)}. Was it started by grpo serve-vllm?"
    )


def _cancel_if_alone(
    task: asyncio.Task[None], waiting: list[asyncio.Future[Completion]], _: object
) -> None:
    if all(done.cancelled() for done in waiting):  # cancelling closes the connection
        task.cancel()
