"""Data-parallel training: one process per GPU, started by torchrun; otherwise a single process.

Each rank plays its own groups and computes its own gradient. The ranks meet three times per step:
to agree whether to stop, to exchange what advantages depend on, and to sum the gradients.
"""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from envs.base import TaskError
from grpo.errors import ConfigError
from grpo.types import Group, Turn

TIMEOUT = timedelta(hours=2)
"""How long to wait for a rank whose pages are slow. A rank that dies ends the others at once."""

MEETING = timedelta(minutes=2)
"""How long the ranks wait for each other at the start, before any of them loads a model."""


class PeerError(RuntimeError):
    """Another rank has failed, so that this one cannot go on."""


class PeerRefused(PeerError):
    """Another rank was asked for something that cannot be done."""


class Ranks(NamedTuple):
    """Which of how many processes this is; see `World`."""

    rank: int
    world_size: int
    local_rank: int


def ranks_of(environ: Mapping[str, str]) -> Ranks:
    """Read the variables that torchrun sets; without them the process is alone.

    Raises:
        ConfigError: one is missing or not valid.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environ.get(name, default) for name, default in zip(names, "010", strict=True)}
    said = ", ".join(f"{name}={value!r}" for name, value in given.items())
    if not all(re.fullmatch("[0-9]{1,9}", value) for value in given.values()):
        raise ConfigError(f"torchrun's variables must be numbers, got {said}")
    ranks = Ranks(*map(int, given.values()))
    if not ranks.rank < ranks.world_size:
        raise ConfigError(f"RANK must be below WORLD_SIZE, got {said}")
    if ranks.world_size > 1:
        needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in needed if not environ.get(name)]:
            raise ConfigError(f"WORLD_SIZE above 1 needs {', '.join(missing)}: start with torchrun")
    return ranks


class _Fault(NamedTuple):
    """What a rank that has failed gives the others in place of the value that they wait for."""

    text: str
    error: type[PeerError] = PeerError


class World:
    """The processes that train together.

    Attributes:
        rank: this process's number, from 0.
        world_size: how many processes there are.
        local_rank: this process's number on its machine, which is its GPU's number.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Join the processes that torchrun started; without torchrun the process is alone.

        Args:
            environ: holds torchrun's RANK, WORLD_SIZE and LOCAL_RANK; None for `os.environ`.

        Raises:
            ConfigError: one of these is not valid.
            PeerError: the processes do not find each other.
        """
        environ = os.environ if environ is None else environ
        self.rank, self.world_size, self.local_rank = ranks_of(environ)
        self._told: BaseException | None = None
        if self.world_size > 1:
            self.use_own_gpu()
            self._meet(f"{environ['MASTER_ADDR']}:{environ['MASTER_PORT']}")

    def _meet(self, address: str) -> None:
        """Wait for the other ranks at the address where they meet; form the process group.

        Raises:
            PeerError: they do not find each other, or are not all there within `MEETING`.
        """
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        rank, size, started = self.rank, self.world_size, time.monotonic()
        try:
            with _no_stderr():
                store = _find_ranks(rank, size)
            store.set_timeout(TIMEOUT)
            dist.init_process_group(backend, None, TIMEOUT, size, rank, store=store)
        except (RuntimeError, ValueError) as error:  # of a socket, or an address that is none
            reason, waited = " ".join(str(error).split()), time.monotonic() - started
            raise PeerError(
                f"the ranks do not find each other: rank {rank} of {size} waited {waited:.0f} s at "
                f"MASTER_ADDR:MASTER_PORT {address}: {reason}"
            ) from error

    @classmethod
    def single(cls) -> World:
        """Return a world of this process alone, whatever the environment says."""
        return cls({})

    def use_own_gpu(self) -> None:
        """Make this rank's GPU the one that the calling thread uses by default."""
        if self.world_size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)

    @property
    def is_main(self) -> bool:
        """True for rank 0, which logs and saves."""
        return self.rank == 0

    def all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank.

        Raises:
            PeerError: another rank has failed.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:  # gloo's: the process has ended
            raise PeerError(f"another rank has ended: {' '.join(str(error).split())}") from error
        for rank, other in enumerate(values):
            if isinstance(other, _Fault) and rank != self.rank:
                raise other.error(f"rank {rank} has failed: {other.text}")
        return values

    def tell(self, error: BaseException) -> None:
        """Let the other ranks know of an error where they next exchange something.

        They raise `PeerError` there, and can save and end as this one does. Waits for them. Does
        nothing for an error that came from another rank, or that they have been told.
        """
        if self.world_size == 1 or isinstance(error, PeerError) or error is self._told:
            return
        self._told = error
        kind = PeerRefused if isinstance(error, ConfigError | TaskError) else PeerError
        with suppress(PeerError):  # they have failed as well
            self.all_gather(_Fault(f"{type(error).__name__}: {error}", kind))

    def all_gather_groups(self, groups: Sequence[Group]) -> tuple[list[Group], range]:
        """Return all ranks' groups in rank order, and the positions of this rank's own.

        The other ranks' groups come without their prompts, which are most of their size.
        """
        if self.world_size == 1:
            return list(groups), range(len(groups))
        per_rank = self.all_gather([without_prompts(group) for group in groups])
        start = sum(map(len, per_rank[: self.rank]))
        gathered = [group for of_rank in per_rank for group in of_rank]
        gathered[start : start + len(groups)] = groups
        return gathered, range(start, start + len(groups))

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in one message."""
        if self.world_size == 1:
            return
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
        total = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(total)
        for p, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


def _find_ranks(rank: int, world_size: int) -> Any:
    """Wait for all ranks at the address in the environment; return the store that they share.

    In a thread: torch holds back Ctrl-C, and waits for a silent server without an end. It takes up
    to twice the time that it is given.

    Raises:
        RuntimeError, ValueError: they were not all there within `MEETING`, or the address is none.
    """
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def find() -> None:
        try:
            found.put(next(rendezvous("env://", rank, world_size, timeout=MEETING / 2))[0])
        except Exception as error:  # raised in the other thread
            found.put(error)

    threading.Thread(target=find, name="rendezvous", daemon=True).start()
    try:
        store = found.get(timeout=MEETING.total_seconds() + 2)
    except queue.Empty:
        raise RuntimeError("there is a server, but it does not respond") from None
    if isinstance(store, Exception):
        raise store
    return store


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what is written to stderr: torch writes a C++ stack of each attempt to connect."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def without_prompts(group: Group) -> Group:
    """Return the group without its prompt ids: enough for rewards, lengths and metrics."""

    def without_prompt(turn: Turn) -> Turn:
        return replace(turn, completion=replace(turn.completion, prompt_ids=()))

    episodes = (replace(e, turns=tuple(map(without_prompt, e.turns))) for e in group.episodes)
    return replace(group, episodes=tuple(episodes))
