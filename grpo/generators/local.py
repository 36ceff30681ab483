"""The embedded generator: samples with the trainer's own model, in the same process.

Requests of all episodes are queued and decoded together, joining and leaving between two tokens
(continuous batching, Orca, OSDI 2022). Models that the token tree supports compute every shared
prefix once (`TreeCache`); others compute a prompt once and copy its cache for each of its
requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grpo.generators.base import Generator, completion_limit
from grpo.generators.sampling import LEVELS, draw_tokens
from grpo.model.decoding import PromptDecoder
from grpo.model.policy import Policy
from grpo.tree.cache_graphs import GraphedTreeCache
from grpo.tree.tree_cache import TreeCache
from grpo.types import Completion


@dataclass(eq=False)
class _Request:
    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    random: np.random.Generator
    done: asyncio.Future[Completion]
    node: int = -1  # of the tree cache: the prompt, and all sampled tokens but the last
    versions: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalGenerator(Generator):
    """Samples from a `Policy` (see `grpo.generators.base.Generator`).

    Each request has its own random stream, so a completion depends on the policy, the prompt and
    the seed, and not on what else was in the batch, except for rounding, which changes about one
    token in 50,000 (float32; see `draw_tokens`).

    Attributes:
        busy_seconds: wall time spent in forward passes.
        tokens_sampled: tokens of all completions so far.
        tokens_computed: tokens that went through the model, prompts included.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        max_new_tokens: int = 32,
        executor: Executor | None = None,
        cache_tokens: int = 4096,
        threads: int | None = None,
    ) -> None:
        """Make a generator.

        Args:
            policy: the policy to sample from; read again at each token.
            max_new_tokens: default limit of a completion's length.
            executor: runs the forward passes; pass one with a single thread, also used for updates.
            cache_tokens: capacity of the tree cache; exceeded only if one prompt needs more.
            threads: CPU threads of a forward pass, None for torch's default. Decoding gains little
                from a second core, browsers on the same machine gain much.
        """
        self.policy, self.max_new_tokens = policy, max_new_tokens
        self.cache_tokens = cache_tokens
        self.tokens_sampled = self.tokens_computed = 0
        self.busy_seconds = 0.0
        self._executor, self._threads = executor, threads
        self._arrived: list[_Request] = []  # used by the event loop only
        self._waiting: list[_Request] = []
        self._active: list[_Request] = []
        self._cache: TreeCache | None = None
        self._cache_version = -1
        self._loop_task: asyncio.Task[None] | None = None

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
        request = _Request(
            prompt_ids=tuple(prompt_ids),
            temperature=temperature,
            max_new_tokens=limit,
            random=np.random.default_rng(seed),
            done=asyncio.get_running_loop().create_future(),
        )
        self._arrived.append(request)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._serve())
        return await request.done

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._arrived or self._waiting or self._active:
            self._waiting += self._arrived
            self._arrived = []
            requests = [*self._waiting, *self._active]
            started = time.monotonic()
            try:
                finished = await loop.run_in_executor(self._executor, self._step)
            except Exception as error:  # passed on to the waiting requests
                finished, self._waiting, self._active, self._cache = [], [], [], None
                for request in requests:
                    if not request.done.done():
                        request.done.set_exception(error)
            self.busy_seconds += time.monotonic() - started
            for request in finished:
                if not request.done.cancelled():
                    request.done.set_result(self._completion(request))

    @torch.no_grad()
    def _step(self) -> list[_Request]:
        """Sample at least one token and return the requests that are done."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads or threads)
        try:
            tree = self.policy.forward_mode == "tree"
            return self._step_tree() if tree else self._step_one_prompt()
        finally:
            torch.set_num_threads(threads)

    def _step_tree(self) -> list[_Request]:
        """Admit waiting requests, compute all new nodes in one forward, sample one token each."""
        self._active = [r for r in self._active if not r.done.cancelled()]
        cache = self._admit()
        if not self._active:
            return []
        for request in self._active:
            request.node = cache.insert(request.node, request.ids[-1:])
        self._active.sort(key=lambda request: request.node)  # requests on one page stay together
        nodes = [request.node for request in self._active]
        self.tokens_computed += cache.compute()
        # Requests at the same node read the same distribution.
        distinct, row = np.unique(nodes, return_inverse=True)
        return self._sample(self.policy.head(cache.states(distinct)), row)

    def _admit(self) -> TreeCache:
        """Move requests from the queue into the batch while they fit into the cache."""
        if self._cache is None or self._cache_version != self.policy.version:
            capacity = self._cache.capacity if self._cache and self._active else self.cache_tokens
            self._cache = self._empty_cache(capacity)
            self._cache_version = self.policy.version
            for request in self._active:  # started with an older policy
                request.node = self._cache.insert(-1, (*request.prompt_ids, *request.ids[:-1]))
                request.versions.append(self.policy.version)
        waiting, self._waiting = self._waiting, []
        for request in waiting:
            reserved = sum(r.max_new_tokens - len(r.ids) for r in [*self._active, request])
            cache = self._cache
            if len(cache) + cache.missing(request.prompt_ids) + reserved > cache.capacity:
                if self._active:
                    self._waiting.append(request)
                    continue
                cache.keep_shared_prefix()
                if len(cache) + cache.missing(request.prompt_ids) + reserved > cache.capacity:
                    needed = max(self.cache_tokens, len(request.prompt_ids) + reserved)
                    self._cache = self._empty_cache(needed)
            request.node = self._cache.insert(-1, request.prompt_ids)
            request.versions.append(self.policy.version)
            self._active.append(request)
        return self._cache

    def _empty_cache(self, capacity: int) -> TreeCache:
        if self._cache is None or self._cache.capacity != capacity:
            return self._new_cache(capacity)
        self._cache.clear()
        return self._cache

    def _new_cache(self, capacity: int) -> TreeCache:
        policy = self.policy
        make = GraphedTreeCache if policy.graphs else TreeCache
        return make(policy.decoder, capacity, policy.device, policy.conv_width)

    def _step_one_prompt(self) -> list[_Request]:
        """Complete all requests for the longest-waiting prompt, with any kind of model."""
        prompt = self._waiting[0].prompt_ids
        self._active = [r for r in self._waiting if r.prompt_ids == prompt]
        self._waiting = [r for r in self._waiting if r.prompt_ids != prompt]
        for request in self._active:
            request.versions.append(self.policy.version)
        policy = self.policy
        finished: list[_Request] = []
        decoder = PromptDecoder(policy.decoder, prompt, policy.device, use_cache=policy.use_cache)
        hidden = decoder.start()
        rows = [0] * len(self._active)  # all requests read the prompt's row
        while True:
            batch = self._active
            finished += self._sample(policy.head(hidden), np.array(rows))
            self.tokens_computed += decoder.tokens_computed
            if not self._active:
                return finished
            # From here on row i is request i; finished requests leave the batch.
            kept = [row for r, row in zip(batch, rows, strict=True) if r in self._active]
            hidden = decoder.extend(kept, [r.ids[-1] for r in self._active])
            rows = list(range(len(kept)))

    def _sample(self, logits: Tensor, row: npt.NDArray[np.int64]) -> list[_Request]:
        """Draw one token for each active request and return the requests that are done.

        Each token is drawn with `LEVELS` numbers from the request's random stream.

        Args:
            logits: [R, V].
            row: [len(active)]; the row that each request reads.
        """
        stop = self.policy.stop_ids
        finished: list[_Request] = []
        temperatures = [request.temperature for request in self._active]
        uniform = [r.random.random(LEVELS) for r in self._active]
        drawn = draw_tokens(logits, row, temperatures, uniform)
        for request, token, logprob in zip(self._active, *drawn, strict=True):
            request.ids.append(token)
            request.logprobs.append(logprob)
            if token in stop or len(request.ids) == request.max_new_tokens:
                finished.append(request)
        self.tokens_sampled += len(self._active)
        self._active = [request for request in self._active if request not in finished]
        return finished

    def _completion(self, request: _Request) -> Completion:
        return Completion(
            prompt_ids=request.prompt_ids,
            completion_ids=tuple(request.ids),
            logprobs=tuple(request.logprobs),
            policy_version=request.versions[0],
            finish_reason="stop" if request.ids[-1] in self.policy.stop_ids else "length",
            is_mixed=len(request.versions) > 1,
        )
