"""The HTTP client of one vLLM server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm.snapshots import PolicySnapshot

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class ServerUnavailable(Exception):
    """The server does not respond, reports an internal error, or no longer has the policy."""


class VLLMClient:
    """A vLLM server, started by `grpo serve-vllm` or with the same options.

    It loads policies, samples from them, and is waited for while it is unavailable.

    A restarted server has lost the policy. With an adapter its requests then fail, since they
    name the adapter. With merged weights it would silently sample from the base model: so the
    adapter is loaded there too, never used, and looked up before each request.

    Attributes:
        url: its address.
        load: samples asked for and not received yet; kept by the caller.
        unavailable_since: `time.monotonic` when it was found unavailable; None while available.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        """Make a client; it does not connect yet.

        Args:
            url: address of the server.
            deadline_s: seconds that the server may be unavailable, or take for a response.
        """
        self.url, self.deadline_s = url.rstrip("/"), deadline_s
        self.load = 0
        self.unavailable_since: float | None = None
        self._loaded: list[str] = []  # the newest two: requests for the older may be in flight
        self._lock = asyncio.Lock()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(deadline_s, connect=5.0, pool=None),
            limits=httpx.Limits(max_connections=None),
        )

    async def ready(self, newest: Callable[[], PolicySnapshot]) -> PolicySnapshot:
        """Load the newest policy, waiting while the server is unavailable.

        Args:
            newest: returns the newest version; called again after each wait.

        Returns:
            The version that the server has now.

        Raises:
            GeneratorError: the server was unavailable for the deadline, or rejects the policy.
            ConfigError: the adapter has modules for which vLLM does not support LoRA.
        """
        async with self._lock:
            while True:
                snapshot = newest()
                loaded = snapshot.weight_sync == "adapter" and snapshot.name in self._loaded
                if loaded and not self.unavailable_since:
                    return snapshot
                try:
                    await self._load(snapshot)
                    self.unavailable_since = None
                    return snapshot
                except ServerUnavailable as reason:
                    await self._wait(reason)

    def mark_unavailable(self, reason: ServerUnavailable) -> None:
        """Treat the server as unavailable until it has loaded the policy again."""
        if self.unavailable_since is None:
            self.unavailable_since = time.monotonic()
            logger.warning("vLLM at %s: %s; waiting for it", self.url, reason)

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
            GeneratorError: it rejects the request.
        """
        body = {"prompt": list(prompt_ids), "n": n, **options}
        if snapshot.weight_sync == "adapter":
            body["model"] = snapshot.name
        self._in_flight += 1
        self._idle.clear()
        try:
            response = await self._post("/v1/completions", body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if response.status_code == 404:
            raise ServerUnavailable(f"it does not have {snapshot.name}")
        self._require(response)
        choices: list[dict[str, Any]] = response.json()["choices"]
        return choices

    async def close(self) -> None:
        """Unload the policy, if the server is available, and close the connections."""
        try:
            while self._loaded:
                await self._unload()
        except ServerUnavailable as reason:
            logger.info("vLLM at %s was unavailable at the end: %s", self.url, reason)
        finally:
            await self._client.aclose()

    async def _load(self, snapshot: PolicySnapshot) -> None:
        models = await self._request("GET", "/v1/models")
        self._require(models)
        if snapshot.name not in {model["id"] for model in models.json()["data"]}:
            if snapshot.weight_sync == "merged":
                await self._idle.wait()  # requests in flight finish with their weights
                await self._reload(snapshot.folder / "merged")
            body = {"lora_name": snapshot.name, "lora_path": str(snapshot.folder)}
            response = await self._post("/v1/load_lora_adapter", body)
            if "target modules" in response.text:
                raise ConfigError(
                    f"vLLM at {self.url} does not support LoRA on all of lora_target_modules: "
                    f"{_reason(response)}"
                )
            self._require(response)
        if snapshot.name not in self._loaded:
            self._loaded.append(snapshot.name)
            if len(self._loaded) > 2:
                await self._unload()

    async def _unload(self) -> None:
        await self._post("/v1/unload_lora_adapter", {"lora_name": self._loaded.pop(0)})

    async def _reload(self, folder: Path) -> None:
        kwargs = {"weights_path": str(folder)}
        body = {"method": "reload_weights", "kwargs": kwargs}
        self._require(await self._post("/collective_rpc", body))
        reset = await self._post("/reset_prefix_cache", {})
        self._require(reset)
        if not reset.json()["success"]:
            raise GeneratorError(
                f"vLLM at {self.url} kept the prefix cache of the older weights: another client "
                "has requests in flight there, which vllm_sync=merged does not allow"
            )

    async def _wait(self, reason: ServerUnavailable) -> None:
        """Wait until the server responds again.

        Raises:
            GeneratorError: it did not within the deadline.
        """
        self.mark_unavailable(reason)
        assert self.unavailable_since is not None
        while time.monotonic() - self.unavailable_since < self.deadline_s:
            await asyncio.sleep(POLL_SECONDS)  # nothing announces a restart
            try:
                if (await self._request("GET", "/health")).is_success:
                    return
            except ServerUnavailable as still:
                reason = still
        raise GeneratorError(
            f"vLLM at {self.url} has been unavailable for {self.deadline_s:.0f} s (vllm_deadline): "
            f"{reason}. Restart it (grpo serve-vllm) and continue from the last checkpoint "
            "(--resume)"
        )

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._request("POST", path, json=body)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{type(error).__name__} {error}".strip()) from error
        if response.is_server_error:
            raise ServerUnavailable(f"HTTP {response.status_code} from {path}: {_reason(response)}")
        return response

    def _require(self, response: httpx.Response) -> None:
        if not response.is_success:
            path = response.request.url.path
            raise GeneratorError(
                f"vLLM at {self.url} responds to {path} with HTTP {response.status_code}: "
                f"{_reason(response)}. Was it started by grpo serve-vllm, with this run's options?"
            )


def _reason(response: httpx.Response) -> str:
    """Shorten an error response to one line."""
    return " ".join(response.text.split())[:500]
