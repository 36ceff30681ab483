"""The thread that runs a vLLM engine: it admits requests, samples tokens and updates weights.

vLLM's engine must be stepped by one thread. A caller holds a future of its completion, and cancels
the future to abort the request.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.types import Completion

if TYPE_CHECKING:
    from grpo.generators.vllm.engine_weights import EngineWeights


@dataclass(eq=False)
class Request:
    """A completion that a caller waits for."""

    prompt_ids: tuple[int, ...]
    temperature: float
    max_new_tokens: int
    done: Future[Completion] = field(default_factory=Future)


@dataclass(eq=False)
class _Call:
    """A function to call between two tokens; with `drain`, after all running requests."""

    function: Callable[[], None]
    drain: bool
    done: Future[None] = field(default_factory=Future)


@dataclass(eq=False)
class _Running:
    """A request inside vLLM.

    Attributes:
        id: vLLM's internal id.
        version: of the policy that samples it.
        waiting: index of a sample -> the requests that get it.
        children: True if vLLM made a child request for each sample.
    """

    id: str
    version: int
    waiting: dict[int, list[Request]]
    children: bool


class EngineThread:
    """Steps an engine on its own thread.

    Attributes:
        weights: the engine and the updates of its weights.
        version: of the policy that new requests start with.
        busy_seconds: wall time spent in steps of the engine so far.
        tokens_sampled: tokens of all completions so far.
    """

    weights: EngineWeights

    def __init__(self, make_weights: Callable[[], EngineWeights]) -> None:
        """Start the thread, make the engine and give it its first weights; blocks until done.

        Raises:
            ConfigError: vLLM cannot do what is asked for.
            GeneratorError: the engine does not start.
        """
        self.busy_seconds, self.tokens_sampled, self.version = 0.0, 0, -1
        self._queue: queue.SimpleQueue[list[Request] | _Call | None] = queue.SimpleQueue()
        self._command: list[Request] | _Call | None = None  # taken from the queue, not finished
        self._running: dict[str, _Running] = {}
        self._names = itertools.count()
        self._lora: Any = None
        self._asleep = False
        self._closed = threading.Event()
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_weights, started), name="vllm", daemon=True
        )
        self._thread.start()
        started.result()

    def submit(self, requests: list[Request]) -> None:
        """Start to sample requests; equal ones become one request to vLLM."""
        self._queue.put(requests)

    def update(self) -> Future[None]:
        """Give the engine the policy's weights; merged ones only after all running requests."""
        return self._call(self._update, drain=self.weights.weight_sync == "merged")

    def sleep(self) -> Future[None]:
        """Free the GPU's memory until the next request or update."""
        return self._call(self._fall_asleep, drain=True)

    def close(self) -> None:
        """Shut the engine down and wait for that; pending requests are cancelled."""
        if not self._closed.is_set():
            self._closed.set()
            self._queue.put(None)
        self._thread.join()

    def _call(self, function: Callable[[], None], *, drain: bool) -> Future[None]:
        call = _Call(function, drain)
        self._queue.put(call)
        return call.done

    def _run(self, make_weights: Callable[[], EngineWeights], started: Future[None]) -> None:
        try:
            self.weights = make_weights()
            self._update()
        except Exception as error:
            started.set_exception(_failure("vLLM does not start", error))
            return
        started.set_result(None)
        reason: Exception | None = None  # None: closed, so pending requests are cancelled
        try:
            while self._take():
                self._step()
        except Exception as error:  # passed on to every pending and later request
            reason = _failure("vLLM failed", error)
        for running in self._running.values():
            _fail_all(list(itertools.chain(*running.waiting.values())), reason)
        _fail_all(self._command, reason)
        while not self._closed.is_set() or not self._queue.empty():
            _fail_all(self._queue.get(), reason)
        self.weights.close()

    def _take(self) -> bool:
        """Process the queue, waiting for a command if no request is running; False to end."""
        while not self._running or not self._queue.empty():
            self._command = self._queue.get()
            if self._command is None:
                return False
            if isinstance(self._command, list):
                self._admit(self._command)
            else:
                while self._command.drain and self._running:
                    self._step()
                try:
                    self._command.function()
                    self._command.done.set_result(None)
                except (ConfigError, GeneratorError) as error:  # the engine continues unchanged
                    self._command.done.set_exception(error)
            self._command = None
        return True

    def _admit(self, requests: list[Request]) -> None:
        from vllm.sampling_params import SamplingParams

        if self._asleep:  # it may have discarded its weights
            self._update()
        equal: dict[tuple[Any, ...], list[Request]] = defaultdict(list)
        for request in requests:
            equal[request.prompt_ids, request.temperature, request.max_new_tokens].append(request)
        for (prompt_ids, temperature, limit), group in equal.items():
            n = len(group) if temperature else 1  # greedy: one completion for all
            params = SamplingParams(
                n=n,
                temperature=temperature,
                max_tokens=limit,
                stop_token_ids=sorted(self.weights.policy.stop_ids),
                logprobs=0,  # of the sampled token only
                detokenize=False,
            )
            name = str(next(self._names))
            inner = self.weights.engine.add_request(
                name, {"prompt_token_ids": list(prompt_ids)}, params, lora_request=self._lora
            )
            waiting = {i: group[i::n] for i in range(n)}
            self._running[name] = _Running(inner, self.version, waiting, children=n > 1)

    def _step(self) -> None:
        """Sample a token for every running request and finish those that are done."""
        started = time.monotonic()
        self._abort_cancelled()
        for output in self.weights.engine.step():
            for sample in output.outputs:
                if sample.finish_reason is not None:
                    self._finish(output.request_id, sample)
        self.busy_seconds += time.monotonic() - started

    def _finish(self, name: str, sample: Any) -> None:
        running = self._running[name]
        requests = running.waiting.pop(sample.index)
        ids = tuple(sample.token_ids)
        pairs = zip(ids, sample.logprobs, strict=True)
        completion = Completion(
            prompt_ids=requests[0].prompt_ids,
            completion_ids=ids,
            logprobs=tuple(distribution[token].logprob for token, distribution in pairs),
            policy_version=running.version,
            finish_reason="stop" if ids[-1] in self.weights.policy.stop_ids else "length",
        )
        self.tokens_sampled += len(ids)
        for request in requests:
            if request.done.set_running_or_notify_cancel():
                request.done.set_result(completion)
        self._forget_if_done(name)

    def _abort_cancelled(self) -> None:
        for name, running in list(self._running.items()):
            for index, requests in list(running.waiting.items()):
                if all(request.done.cancelled() for request in requests):
                    del running.waiting[index]
                    sample = f"{index}_{running.id}" if running.children else running.id
                    self.weights.engine.abort_request([sample], internal=True)
            self._forget_if_done(name)

    def _forget_if_done(self, name: str) -> None:
        running = self._running[name]
        if not running.waiting:
            del self._running[name]
            if running.children:  # or vLLM keeps the parent of an aborted sample forever
                self.weights.engine.abort_request([running.id], internal=True)

    def _update(self) -> None:
        if self._asleep:
            self.weights.engine.wake_up()
            self._asleep = False
        self._lora = self.weights.update()
        self.version = self.weights.policy.version

    def _fall_asleep(self) -> None:
        # Level 2 discards the weights, which a merged update replaces; level 1 moves those that an
        # adapter needs to the CPU's memory.
        level = 2 if self.weights.weight_sync == "merged" else 1
        self.weights.engine.sleep(level=level)
        self._asleep = True


def _failure(what: str, error: Exception) -> Exception:
    if isinstance(error, ConfigError | GeneratorError):
        return error
    reason = " ".join(str(error).split())  # vLLM's are often several lines
    failure = GeneratorError(f"{what}: {type(error).__name__}: {reason}")
    failure.__cause__ = error
    return failure


def _fail_all(command: list[Request] | _Call | None, reason: Exception | None) -> None:
    """Cancel what a command waits for, or fail it with a reason."""
    pending = command if isinstance(command, list) else [command] if command else []
    for done in (one.done for one in pending):
        if reason is None:
            done.cancel()
        elif not done.done() and done.set_running_or_notify_cancel():
            done.set_exception(reason)
