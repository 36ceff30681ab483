"""One vLLM server reached over HTTP: given the policy, asked for samples, waited for when gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from grpo.config import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.vllm.options import Sync

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class ServerUnavailable(Exception):
    """The server did not answer, answered that it is broken, or has lost the policy."""


@dataclass(frozen=True)
class PolicySnapshot:
    """A version of the policy, as servers are given it."""

    folder: Path
    version: int
    sync: Sync

    @property
    def name(self) -> str:
        """What servers know it by; no other version, of no other run, has this name."""
        return self.folder.name


class VLLMClient:
    """A vLLM server, started by `make serve` or with the same options.

    On the adapter road a server that was started again knows no adapter of that name and says
    so. On the merged road it would sample from the plain model and nobody would notice: so the
    adapter is loaded there too, never used, and looked for before each request.

    Attributes:
        url: where it is.
        load: samples that it was chosen for and has not given; kept by who chooses.
        lost_at: when it was found gone, by `time.monotonic`; None while it answers.
    """

    def __init__(self, url: str, deadline_s: float) -> None:
        self.url, self.deadline_s = url.rstrip("/"), deadline_s
        self.load = 0
        self.lost_at: float | None = None
        self._loaded: list[str] = []  # the newest two: a request of the older may be on its way
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
        """Return the newest version once the server has it, waiting for a server that is gone.

        Raises:
            GeneratorError: it stayed away for longer than the deadline, or refuses.
            ConfigError: the adapter has modules that vLLM does not serve.
        """
        async with self._lock:
            while True:
                given = newest()
                if given.sync == "adapter" and given.name in self._loaded and not self.lost_at:
                    return given
                try:
                    await self._give(given)
                    self.lost_at = None
                    return given
                except ServerUnavailable as reason:
                    await self._wait(reason)

    def lose(self, reason: ServerUnavailable) -> None:
        """Count the server as gone until it has been given the policy anew."""
        if self.lost_at is None:
            self.lost_at = time.monotonic()
            logger.warning("vLLM at %s: %s; waiting for it", self.url, reason)

    async def complete(
        self, given: PolicySnapshot, prompt_ids: tuple[int, ...], n: int, **options: Any
    ) -> list[dict[str, Any]]:
        """Ask for n samples; closing the connection (a cancelled task) ends them.

        Raises:
            ServerUnavailable: the server is gone, or was started again since.
            GeneratorError: it refuses.
        """
        body = {"prompt": list(prompt_ids), "n": n, **options}
        if given.sync == "adapter":
            body["model"] = given.name
        self._in_flight += 1
        self._idle.clear()
        try:
            response = await self._post("/v1/completions", body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()
        if response.status_code == 404:
            raise ServerUnavailable(f"it does not know {given.name}")
        self._require(response)
        return response.json()["choices"]

    async def close(self) -> None:
        """Take the policy off the server, if it is there, and close the connections."""
        try:
            while self._loaded:
                await self._unload()
        except ServerUnavailable as reason:
            logger.info("vLLM at %s was gone before the end: %s", self.url, reason)
        finally:
            await self._client.aclose()

    async def _give(self, given: PolicySnapshot) -> None:
        models = await self._request("GET", "/v1/models")
        self._require(models)
        if given.name not in {model["id"] for model in models.json()["data"]}:
            if given.sync == "merged":
                await self._idle.wait()  # requests in flight end with the weights they began with
                await self._reload(given.folder / "merged")
            body = {"lora_name": given.name, "lora_path": str(given.folder)}
            response = await self._post("/v1/load_lora_adapter", body)
            if "target modules" in response.text:
                raise ConfigError(
                    f"vLLM at {self.url} does not serve all of lora_target_modules: "
                    f"{_reason(response)}"
                )
            self._require(response)
        if given.name not in self._loaded:
            self._loaded.append(given.name)
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
                f"vLLM at {self.url} kept the prefix cache of the older weights: somebody else "
                "has requests in flight there, which the merged road does not allow"
            )

    async def _wait(self, reason: ServerUnavailable) -> None:
        """Return when the server answers again.

        Raises:
            GeneratorError: it does not within the deadline.
        """
        self.lose(reason)
        assert self.lost_at is not None
        while time.monotonic() - self.lost_at < self.deadline_s:
            await asyncio.sleep(POLL_SECONDS)  # a server that is gone tells nobody of its return
            try:
                if (await self._request("GET", "/health")).is_success:
                    return
            except ServerUnavailable as still:
                reason = still
        raise GeneratorError(
            f"vLLM at {self.url} has been away for {self.deadline_s:.0f} s (vllm_deadline): "
            f"{reason}. Start it again (make serve) and go on from the last checkpoint (--resume)"
        )

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return await self._request("POST", path, json=body)

    async def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **options)
        except httpx.TransportError as error:
            raise ServerUnavailable(f"{type(error).__name__} {error}".strip()) from error
        if response.is_server_error:
            raise ServerUnavailable(f"HTTP {response.status_code} of {path}: {_reason(response)}")
        return response

    def _require(self, response: httpx.Response) -> None:
        if not response.is_success:
            path = response.request.url.path
            raise GeneratorError(
                f"vLLM at {self.url} answers {path} with HTTP {response.status_code}: "
                f"{_reason(response)}. Was it started by `make serve`, with this run's options?"
            )


def _reason(response: httpx.Response) -> str:
    """The message of an error in one line."""
    return " ".join(response.text.split())[:500]
