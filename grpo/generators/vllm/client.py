"""The HTTP client of one vLLM server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm import connection
from grpo.generators.vllm.connection import ServerConnection, ServerUnavailable, reason
from grpo.generators.vllm.lease import LEASE_PATH, Holder
from grpo.generators.vllm.snapshots import PolicySnapshot

logger = logging.getLogger(__name__)


class VLLMClient:
    """A vLLM server, started by `grpo serve-vllm` or with the same options.

    It takes the server's lease (`grpo.generators.vllm.lease`), loads policies, samples from them,
    and waits for the server while it is unavailable. A restarted server has lost the policy and
    the lease, and refuses every request until both are given to it again.

    Attributes:
        url: its address.
        load: samples asked for and not received yet; kept by the caller.
        unavailable_since: `time.monotonic` when it was found unavailable; None while available.
    """

    def __init__(self, url: str, deadline_s: float, holder: Holder) -> None:
        """Make a client; it does not connect yet.

        Args:
            url: address of the server.
            deadline_s: seconds that the server may be unavailable, or take for a response.
            holder: the run that takes the server's lease.
        """
        self.url, self.deadline_s, self.holder = url.rstrip("/"), deadline_s, holder
        self.load = 0
        self.unavailable_since: float | None = None
        self._has_lease = False
        self._loaded: list[PolicySnapshot] = []  # of adapters two: some requests want the older
        self._lock = asyncio.Lock()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection = ServerConnection(self.url, deadline_s, holder.run)

    async def ready(self, newest: Callable[[], PolicySnapshot]) -> PolicySnapshot:
        """Load the newest policy, waiting while the server is unavailable.

        Args:
            newest: returns the newest version; called again after each wait.

        Returns:
            The version that the server has now.

        Raises:
            GeneratorError: the server was unavailable for the deadline, belongs to another run,
                or rejects the policy.
            ConfigError: the server does not support LoRA of the adapter's rank or modules.
        """
        async with self._lock:
            while True:
                snapshot = newest()
                if snapshot in self._loaded and not self.unavailable_since:
                    return snapshot
                try:
                    if self.unavailable_since:
                        await self._connection.check_health()
                    await self._load(snapshot)
                    self.unavailable_since = None
                    return snapshot
                except ServerUnavailable as error:
                    await self._wait(error)

    def mark_unavailable(self, error: ServerUnavailable) -> None:
        """Treat the server as unavailable until it has loaded the policy again."""
        if self.unavailable_since is None:
            self.unavailable_since = time.monotonic()
            # At the start of a run it may be loading its model; the program shows that it waits.
            level = logging.WARNING if self._has_lease else logging.INFO
            logger.log(level, "vLLM at %s: %s; waiting for it", self.url, error)

    async def complete(
        self, snapshot: PolicySnapshot, prompt_ids: tuple[int, ...], n: int, **options: Any
    ) -> list[dict[str, Any]]:
        """Ask for n samples; cancelling closes the connection, which aborts them.

        Args:
            snapshot: the version to sample from, as `ready` returned it.
            prompt_ids: the prompt.
            n: number of samples.
            options: further fields of vLLM's completion request.

        Returns:
            The n choices of vLLM's response.

        Raises:
            ServerUnavailable: the server does not respond, or was restarted.
            GeneratorError: it rejects the request, or belongs to another run now.
        """
        body = {"prompt": list(prompt_ids), "n": n, **options}
        if snapshot.weight_sync == "adapter":
            body["model"] = snapshot.name
        self._in_flight += 1
        self._idle.clear()
        try:
            response = await self._connection.request("POST", "/v1/completions", json=body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if response.status_code == 404 and snapshot.weight_sync == "adapter":
            self._loaded = [loaded for loaded in self._loaded if loaded != snapshot]
            raise ServerUnavailable(f"it does not have {snapshot.name}")
        self._connection.require_success(response)
        choices = self._connection.field(response, "choices")
        return choices if isinstance(choices, list) else []

    async def close(self) -> None:
        """Unload the policy and give the lease back, if the server is available; disconnect."""
        try:
            if self._has_lease:
                while self._loaded:
                    await self._drop_oldest()
                await self._connection.request("DELETE", LEASE_PATH)
        except (ServerUnavailable, GeneratorError) as error:
            logger.info("vLLM at %s was unavailable at the end: %s", self.url, error)
        finally:
            await self._connection.close()

    async def _load(self, snapshot: PolicySnapshot) -> None:
        await self._take_lease()
        if snapshot in self._loaded:
            return
        if snapshot.weight_sync == "merged":
            await self._idle.wait()  # requests in flight finish with their weights
            self._loaded.clear()
            await self._reload(snapshot.folder)
        else:
            await self._load_adapter(snapshot)
        self._loaded.append(snapshot)
        if len(self._loaded) > 2:
            await self._drop_oldest()

    async def _take_lease(self) -> None:
        about = {"name": self.holder.name, "folder": self.holder.folder}
        response = await self._connection.request("POST", LEASE_PATH, params=about)
        if response.status_code == 404:
            raise GeneratorError(
                f"vLLM at {self.url} keeps no lease, so another run could replace this run's "
                "weights: start it with grpo serve-vllm"
            )
        self._connection.require_success(response)
        self._has_lease = True
        if self._connection.field(response, "is_new"):
            self._loaded.clear()

    async def _load_adapter(self, snapshot: PolicySnapshot) -> None:
        models = await self._connection.require("GET", "/v1/models")
        if snapshot.name in {model["id"] for model in self._connection.field(models, "data")}:
            return  # an earlier attempt lost its response alone
        body = {"lora_name": snapshot.name, "lora_path": str(snapshot.folder)}
        response = await self._connection.request(
            "POST",
            "/v1/load_lora_adapter",
            attempts=1,  # to an adapter that it cannot serve vLLM responds with HTTP 500
            json=body,
        )
        if "target modules" in response.text:
            raise ConfigError(
                f"vLLM at {self.url} does not support LoRA on all of lora_target_modules: "
                f"{reason(response)}"
            )
        if "max_lora_rank" in response.text:
            raise ConfigError(
                f"vLLM at {self.url} was started for adapters of a smaller rank than lora_r: "
                f"{reason(response)}; start it with this run's options (grpo serve-vllm)"
            )
        self._connection.require_success(response)

    async def _drop_oldest(self) -> None:
        snapshot = self._loaded.pop(0)
        if snapshot.weight_sync == "adapter":
            body = {"lora_name": snapshot.name}
            await self._connection.request("POST", "/v1/unload_lora_adapter", json=body)

    async def _reload(self, folder: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self._connection.require("POST", "/collective_rpc", json=body)
        reset = await self._connection.require("POST", "/reset_prefix_cache", json={})
        if not self._connection.field(reset, "success"):
            raise GeneratorError(
                f"vLLM at {self.url} kept the prefix cache of the older weights: it still has "
                "requests in flight, which vllm_sync=merged does not allow"
            )

    async def _wait(self, error: ServerUnavailable) -> None:
        """Wait until the server responds again.

        Raises:
            GeneratorError: it did not within the deadline.
        """
        self.mark_unavailable(error)
        assert self.unavailable_since is not None
        while time.monotonic() - self.unavailable_since < self.deadline_s:
            await asyncio.sleep(connection.POLL_SECONDS)  # nothing announces a restart
            try:
                await self._connection.check_health()
                return
            except ServerUnavailable as still:
                error = still
        raise GeneratorError(
            f"vLLM at {self.url} has been unavailable for {self.deadline_s:.0f} s (vllm_deadline): "
            f"{error}. Start it with grpo serve-vllm"
        )
