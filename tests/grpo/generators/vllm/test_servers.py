"""The client of vLLM's servers, over a fake of them: who is asked, what is sent, what is survived.

What a real server answers is tested in tests/grpo/generators/vllm.
"""

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from grpo.config import Config, ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.factory import open_generator
from grpo.generators.vllm import client as vllm_replica
from grpo.generators.vllm import serve as vllm_serve
from grpo.generators.vllm.options import VERSIONS_KEPT, PolicyFolders
from grpo.generators.vllm.servers import VLLMServers

PROMPT = [3, 4, 5]


class Fake:
    """Speaks as much HTTP as the client needs; its first token names the weights in use."""

    def __init__(self):
        self.asked, self.port, self.hold = [], 0, None
        self.refusal = ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        self.adapters, self.weights, self.writers = {}, "base", set()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def die(self):
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()
        await self.server.wait_closed()

    async def serve(self, reader, writer):
        self.writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                _, path, _ = head.decode().split(" ", 2)
                length = [h for h in head.lower().split(b"\r\n") if h.startswith(b"content-length")]
                body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b"{}"
                status, answer = await self.answer(path, json.loads(body or b"{}"))
                data = json.dumps(answer).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)))
                writer.write(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, or was made to
        finally:
            self.writers.discard(writer)
            writer.close()

    async def answer(self, path, body):
        self.asked.append((path, body))
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ["base", *self.adapters]]}
        if path == "/v1/load_lora_adapter":
            if self.refusal:
                return 400, {"error": self.refusal}
            assert Path(body["lora_path"], "adapter_model.safetensors").is_file()
            self.adapters[body["lora_name"]] = body["lora_path"]
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"], None)
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            assert (folder / "model.safetensors").is_file()
            self.weights = folder.parent.name
        if path == "/reset_prefix_cache":
            return 200, {"success": True}
        if path == "/v1/completions":
            if self.hold:
                await self.hold.wait()
            if body.get("model", "base") not in ["base", *self.adapters]:
                return 404, {"error": "no such model"}
            name = body.get("model") or self.weights
            version = int(name.split("-")[1][1:]) if name != "base" else 99
            logprobs = {"token_logprobs": [-0.5, -0.25]}
            return 200, {
                "choices": [{"token_ids": [10 + version, i], "logprobs": logprobs}
                            for i in range(body["n"])]
            }  # fmt: skip
        return 200, {}

    def count(self, path):
        return sum(asked == path for asked, _ in self.asked)


@asynccontextmanager
async def fakes(number=1):
    servers = [Fake() for _ in range(number)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.die()


@pytest.fixture
def open_client(make_policy, tmp_path, monkeypatch):
    """A function: a client of these servers, on a tiny policy."""
    monkeypatch.setattr(vllm_replica, "POLL_SECONDS", 0.01)

    @asynccontextmanager
    async def opened(servers, sync="adapter", **options):
        policy = make_policy(double=False)
        urls = [server.url for server in servers]
        client = VLLMServers(policy, urls, sync=sync, folder=str(tmp_path), **options)
        try:
            yield client
        finally:
            await client.close()
        assert list(tmp_path.iterdir()) == []

    return opened


async def ask(client, *prompts, **options):
    return await asyncio.gather(*(client.generate(p, seed=0, **options) for p in prompts))


async def test_equal_prompts_are_one_request(open_client):
    async with fakes() as [server], open_client([server]) as client:
        completions = await ask(client, PROMPT, [9], PROMPT, PROMPT)
        assert [c.completion_ids[1] for c in completions] == [0, 0, 1, 2]
        sent = [body for path, body in server.asked if path == "/v1/completions"]
        assert sorted(body["n"] for body in sent) == [1, 3]
        assert {body["logprobs"] for body in sent} == {0}
        assert completions[1].logprobs == (-0.5, -0.25)
        assert [c.finish_reason for c in completions] == ["stop", "stop", "length", "length"]
        greedy = await ask(client, PROMPT, PROMPT, temperature=0)
        assert greedy[0] == greedy[1]
        assert server.asked[-1][1]["n"] == 1
        assert client.tokens_sampled == 10
        assert client.busy_seconds > 0


@pytest.mark.parametrize("sync", ["adapter", "merged"])
async def test_each_sync_is_a_new_name(open_client, sync):
    async with fakes() as [server], open_client([server], sync) as client:
        for version in (0, 1, 1):  # a version may come twice: after a checkpoint is loaded
            client.policy.version = version
            await client.sync()
            (completion,) = await ask(client, PROMPT)
            assert completion.completion_ids[0] == 10 + version
            assert completion.policy_version == version
        loaded = [
            body["lora_name"]
            for path, body in server.asked
            if path.endswith("load_lora_adapter") and "lora_path" in body
        ]
        assert len(set(loaded)) == 3
        assert list(server.adapters) == loaded[1:]  # requests of the one before may be on their way
    assert server.adapters == {}


async def test_replicas_share_the_work_and_a_prompt_stays_with_its_own(open_client):
    async with fakes(2) as servers, open_client(servers) as client:
        await client.sync()
        gate = asyncio.Event()
        for server in servers:
            server.hold = gate
        first = asyncio.create_task(client.generate(PROMPT, seed=0))
        await asyncio.sleep(0)
        while not sum(server.count("/v1/completions") for server in servers):
            await asyncio.sleep(0)
        rest = [asyncio.create_task(client.generate(p, seed=0)) for p in (PROMPT, [9])]
        while sum(server.count("/v1/completions") for server in servers) < 3:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
        seen = [[body["prompt"] for _, body in s.asked if "prompt" in body] for s in servers]
        assert sorted(seen) == [[PROMPT, PROMPT], [[9]]]
        assert [replica.load for replica in client._replicas] == [0, 0]


@pytest.mark.parametrize("sync", ["adapter", "merged"])
@pytest.mark.parametrize("in_flight", [True, False])
async def test_a_server_started_again_is_given_the_policy_anew(open_client, sync, in_flight):
    async with fakes() as [server], open_client([server], sync) as client:
        client.policy.version = 5
        await client.sync()
        if in_flight:
            server.hold = asyncio.Event()
            asked = asyncio.create_task(client.generate(PROMPT, seed=0))
            while not server.count("/v1/completions"):
                await asyncio.sleep(0)
        await server.die()
        server.hold = None
        await server.start()
        completion = await (asked if in_flight else client.generate(PROMPT, seed=0))
        assert completion.completion_ids[0] == 15  # and not the plain model's 109


async def test_a_dead_replica_leaves_its_work_to_the_other(open_client):
    async with fakes(2) as servers, open_client(servers, deadline_s=30) as client:
        await client.sync()
        await servers[0].die()
        await ask(client, PROMPT, [9], [8])
        assert servers[1].count("/v1/completions") == 3
        await servers[0].start()


@pytest.mark.parametrize("ask_first", [True, False])
async def test_waiting_has_an_end(open_client, ask_first):
    async with fakes() as [server], open_client([server], deadline_s=0.1) as client:
        await client.sync()
        await server.die()
        with pytest.raises(GeneratorError, match=rf"{server.url} has been away .*--resume"):
            await (client.generate(PROMPT, seed=0) if ask_first else client.sync())
        await server.start()


async def test_a_cancelled_request_closes_its_connection(open_client):
    async with fakes() as [server], open_client([server]) as client:
        await client.sync()
        server.hold = asyncio.Event()
        one, two = (asyncio.create_task(client.generate(PROMPT, seed=i)) for i in range(2))
        while not server.count("/v1/completions"):
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.sleep(0.01)
        assert client._tasks  # somebody still waits
        two.cancel()
        while client._tasks:
            await asyncio.sleep(0)
        assert client._replicas[0].load == 0


async def test_refusals_say_what_to_do(open_client):
    async with fakes() as [server], open_client([server]) as client:
        server.refusal = "expected target modules in {'q_proj'} but received ['conv']"
        with pytest.raises(ConfigError, match=r"not serve all of lora_target_modules.*'conv'"):
            await client.sync()
        server.refusal = "no room"
        with pytest.raises(GeneratorError, match=r"HTTP 400: .*no room.*make serve"):
            await client.sync()
        server.refusal = ""
        with pytest.raises(ValueError, match="prompt of 1 to"):
            await client.generate([], seed=0)
    with pytest.raises(GeneratorError, match="closed"):
        await client.generate(PROMPT, seed=0)
    with pytest.raises(ConfigError, match="vllm_url"):
        VLLMServers(client.policy, [])
    with pytest.raises(GeneratorError, match="vllm_folder"):
        VLLMServers(client.policy, ["http://127.0.0.1:1"], folder="/nowhere")


async def test_folders_of_older_versions_go(make_policy, tmp_path):
    policy, folders = make_policy(double=False), PolicyFolders(str(tmp_path))
    written = [folders.write(policy, "adapter") for _ in range(VERSIONS_KEPT + 2)]
    assert [path.exists() for path in written] == [False] * 2 + [True] * VERSIONS_KEPT
    assert len({path.name for path in written}) == len(written)


async def test_the_configuration_opens_a_client_that_is_tested(make_policy, executor, tmp_path):
    async with fakes() as [server]:
        config = Config(backend="vllm-server", vllm_url=server.url, vllm_folder=str(tmp_path))
        with pytest.raises(GeneratorError, match="does not compute the same model"):
            async with open_generator(config, make_policy(double=False), executor):
                pass
    assert list(tmp_path.iterdir()) == []


def test_the_server_is_started_with_the_settings_of_a_run():
    config = Config(dtype="float32", lora_r=12, vllm_url="http://127.0.0.1:8123", vllm_memory=0.5)
    command = vllm_serve.server_command(config, device="cpu", model="m", model_type="lfm2")
    text = " ".join(command)
    for part in ("--model m", "--port 8123", "--max-lora-rank 16", "--enable-lora",
                 "--logprobs-mode processed_logprobs", "--generation-config vllm",
                 '{"custom_ops": ["all", "-rotary_embedding"]}',
                 "--kv-cache-memory-bytes 536870912"):  # fmt: skip
        assert part in text
    gpu = vllm_serve.server_command(config, device="cuda", model="m", model_type="llama")
    assert "--gpu-memory-utilization 0.5" in " ".join(gpu)
    assert "--enforce-eager" not in gpu
