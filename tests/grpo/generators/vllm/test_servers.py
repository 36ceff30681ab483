"""VLLMServers against fake servers: which one is asked, what is sent, which failures it survives.

tests/grpo/generators/vllm/real has the tests against a real server.
"""

import asyncio
import json
import multiprocessing
import os
import resource
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from grpo.config import Config
from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.factory import open_generator
from grpo.generators.vllm import connection
from grpo.generators.vllm.lease import LEASE_PATH, RUN_HEADER, RunLease
from grpo.generators.vllm.options import VERSIONS_KEPT
from grpo.generators.vllm.serve import server_command
from grpo.generators.vllm.servers import VLLMServers
from grpo.generators.vllm.snapshots import PolicyFolders

PROMPT = [3, 4, 5]


class FakeServer:
    """A server with as much HTTP as the client needs; its first token names the weights in use.

    `failures` maps a path to the HTTP responses (status, content) that it gives next.
    """

    def __init__(self):
        self.requests, self.port, self.hold = [], 0, None
        self.rejection = ""
        self.failures = {}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self):
        self.adapters, self.weights, self.writers = {}, "base", set()
        self.application = RunLease(self.answer)
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
                first, *lines = head.decode("latin-1").rstrip().split("\r\n")
                method, target, _ = first.split(" ", 2)
                path, _, query = target.partition("?")
                headers = dict(line.lower().split(": ", 1) for line in lines)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                scope = {
                    "type": "http",
                    "method": method,
                    "path": path,
                    "query_string": query.encode(),
                    "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
                    "body": json.loads(body or b"{}"),
                }

                async def send(event):
                    if status := event.get("status"):
                        lines = [b"%s: %s" % header for header in event["headers"]]
                        writer.write(b"\r\n".join([b"HTTP/1.1 %d X" % status, *lines, b"", b""]))
                    else:
                        writer.write(event["body"])

                await self.application(scope, None, send)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client disconnected, or `die` was called
        finally:
            self.writers.discard(writer)
            writer.close()

    async def answer(self, scope, receive, send):
        status, response = await self.respond(scope["path"], scope["body"])
        data = json.dumps(response).encode()
        headers = [(b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def respond(self, path, body):
        self.requests.append((path, body))
        if self.failures.get(path):
            return self.failures[path].pop(0)
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ["base", *self.adapters]]}
        if path == "/v1/load_lora_adapter":
            if self.rejection:
                return 500, {"error": self.rejection}  # as vLLM does
            assert Path(body["lora_path"], "adapter_model.safetensors").is_file()
            self.adapters[body["lora_name"]] = body["lora_path"]
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"], None)
        if path == "/collective_rpc":
            folder = Path(body["kwargs"]["weights_path"])
            assert (folder / "model.safetensors").is_file()
            self.weights = folder.name
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
        return sum(requested == path for requested, _ in self.requests)


@asynccontextmanager
async def fake_servers(number=1):
    servers = [FakeServer() for _ in range(number)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            await server.die()


@pytest.fixture
def open_generator_on(make_policy, tmp_path, monkeypatch):
    """A function that opens a generator on servers, with a tiny policy."""
    monkeypatch.setattr(connection, "POLL_SECONDS", 0.01)

    @asynccontextmanager
    async def opened(servers, weight_sync="adapter", **options):
        policy = make_policy(double=False)
        urls = [server.url for server in servers]
        generator = VLLMServers(
            policy, urls, weight_sync=weight_sync, folder=str(tmp_path), **options
        )
        try:
            yield generator
        finally:
            await generator.close()
        assert list(tmp_path.iterdir()) == []

    return opened


async def ask(generator, *prompts, **options):
    return await asyncio.gather(*(generator.generate(p, seed=0, **options) for p in prompts))


async def test_equal_prompts_are_one_request(open_generator_on):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        completions = await ask(generator, PROMPT, [9], PROMPT, PROMPT)
        assert [c.completion_ids[1] for c in completions] == [0, 0, 1, 2]
        sent = [body for path, body in server.requests if path == "/v1/completions"]
        assert sorted(body["n"] for body in sent) == [1, 3]
        assert {body["logprobs"] for body in sent} == {0}
        assert completions[1].logprobs == (-0.5, -0.25)
        assert [c.finish_reason for c in completions] == ["stop", "stop", "length", "length"]
        greedy = await ask(generator, PROMPT, PROMPT, temperature=0)
        assert greedy[0] == greedy[1]
        assert server.requests[-1][1]["n"] == 1
        assert generator.tokens_sampled == 10
        assert generator.busy_seconds > 0


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
async def test_each_sync_uses_a_new_name(open_generator_on, weight_sync):
    async with fake_servers() as [server], open_generator_on([server], weight_sync) as generator:
        for version in (0, 1, 1):  # a version may repeat: after a checkpoint is loaded
            generator.policy.version = version
            await generator.sync()
            (completion,) = await ask(generator, PROMPT)
            assert completion.completion_ids[0] == 10 + version
            assert completion.policy_version == version
        folders = [
            body.get("lora_path") or body["kwargs"]["weights_path"]
            for path, body in server.requests
            if "lora_path" in body or path == "/collective_rpc"
        ]
        assert len(set(folders)) == 3
        # Requests for the previous adapter may be in flight.
        assert list(server.adapters.values()) == (folders[1:] if weight_sync == "adapter" else [])
    assert server.adapters == {}


async def test_servers_share_the_load_and_a_prompt_stays_with_its_server(open_generator_on):
    async with fake_servers(2) as servers, open_generator_on(servers) as generator:
        await generator.sync()
        gate = asyncio.Event()
        for server in servers:
            server.hold = gate
        first = asyncio.create_task(generator.generate(PROMPT, seed=0))
        await asyncio.sleep(0)
        while not sum(server.count("/v1/completions") for server in servers):
            await asyncio.sleep(0)
        rest = [asyncio.create_task(generator.generate(p, seed=0)) for p in (PROMPT, [9])]
        while sum(server.count("/v1/completions") for server in servers) < 3:
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
        seen = [[body["prompt"] for _, body in s.requests if "prompt" in body] for s in servers]
        assert sorted(seen) == [[PROMPT, PROMPT], [[9]]]
        assert [client.load for client in generator._clients] == [0, 0]


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
@pytest.mark.parametrize("in_flight", [True, False])
async def test_a_restarted_server_is_given_the_policy_again(
    open_generator_on, weight_sync, in_flight
):
    async with fake_servers() as [server], open_generator_on([server], weight_sync) as generator:
        generator.policy.version = 5
        await generator.sync()
        if in_flight:
            server.hold = asyncio.Event()
            pending = asyncio.create_task(generator.generate(PROMPT, seed=0))
            while not server.count("/v1/completions"):
                await asyncio.sleep(0)
        await server.die()
        server.hold = None
        await server.start()
        completion = await (pending if in_flight else generator.generate(PROMPT, seed=0))
        assert completion.completion_ids[0] == 15  # the base model would give 109


async def test_the_load_of_a_dead_server_goes_to_the_other(open_generator_on):
    async with fake_servers(2) as servers, open_generator_on(servers, deadline_s=30) as generator:
        await generator.sync()
        await servers[0].die()
        await ask(generator, PROMPT, [9], [8])
        assert servers[1].count("/v1/completions") == 3
        await servers[0].start()


@pytest.mark.parametrize("in_request", [True, False])
async def test_waiting_ends_at_the_deadline(open_generator_on, in_request):
    async with fake_servers() as [server], open_generator_on([server], deadline_s=0.1) as generator:
        await generator.sync()
        await server.die()
        with pytest.raises(
            GeneratorError, match=rf"{server.url} has been unavailable .*serve-vllm"
        ):
            await (generator.generate(PROMPT, seed=0) if in_request else generator.sync())
        await server.start()


async def test_a_server_is_announced_as_lost_once_it_was_there(open_generator_on, caplog):
    async with fake_servers() as [server], open_generator_on([server], deadline_s=0.1) as generator:
        await server.die()
        with pytest.raises(GeneratorError, match="has been unavailable"):
            await generator.sync()
        assert "waiting for it" not in caplog.text
        await server.start()
        await generator.sync()
        await server.die()
        with pytest.raises(GeneratorError, match="has been unavailable"):
            await generator.sync()
        assert caplog.text.count("waiting for it") == 1
        await server.start()


async def test_a_cancelled_request_closes_its_connection(open_generator_on):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        await generator.sync()
        server.hold = asyncio.Event()
        one, two = (asyncio.create_task(generator.generate(PROMPT, seed=i)) for i in range(2))
        while not server.count("/v1/completions"):
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.sleep(0.01)
        assert generator._tasks  # the other request still waits
        two.cancel()
        while generator._tasks:
            await asyncio.sleep(0)
        assert generator._clients[0].load == 0


async def test_rejections_say_what_to_do_at_once(open_generator_on):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        server.rejection = "expected target modules in {'q_proj'} but received ['conv']"
        with pytest.raises(
            ConfigError, match=r"not support LoRA on all of lora_target_modules.*'conv'"
        ):
            await generator.sync()
        server.rejection = "Call to add_lora failed: LoRA rank 64 is greater than max_lora_rank 16."
        with pytest.raises(ConfigError, match=r"smaller rank than lora_r: .*64 is greater.*16"):
            await generator.sync()
        server.rejection = "no memory"
        with pytest.raises(GeneratorError, match=r"HTTP 500: .*no memory.*grpo serve-vllm"):
            await generator.sync()
        assert server.count("/v1/load_lora_adapter") == 3
        server.rejection = ""
        with pytest.raises(ValueError, match="prompt of 1 to"):
            await generator.generate([], seed=0)
    with pytest.raises(GeneratorError, match="closed"):
        await generator.generate(PROMPT, seed=0)
    with pytest.raises(ConfigError, match="vllm_url"):
        VLLMServers(generator.policy, [])
    with pytest.raises(GeneratorError, match="vllm_folder"):
        VLLMServers(generator.policy, ["http://127.0.0.1:1"], folder="/nowhere")


async def test_folders_of_older_versions_are_removed(make_policy, tmp_path):
    policy, folders = make_policy(double=False), PolicyFolders(str(tmp_path))
    written = [folders.write(policy, "adapter") for _ in range(VERSIONS_KEPT + 2)]
    assert [path.exists() for path in written] == [False] * 2 + [True] * VERSIONS_KEPT
    assert len({path.name for path in written}) == len(written)


async def test_the_generator_that_a_configuration_opens_is_checked(make_policy, executor, tmp_path):
    async with fake_servers() as [server]:
        config = Config(backend="vllm-server", vllm_url=server.url, vllm_folder=str(tmp_path))
        with pytest.raises(GeneratorError, match="does not compute the same model"):
            async with open_generator(config, make_policy(double=False), executor):
                pass
    assert list(tmp_path.iterdir()) == []


def test_the_server_command_has_the_options_of_the_run():
    from transformers import Lfm2Config, LlamaConfig

    config = Config(dtype="float32", lora_r=12, vllm_url="http://127.0.0.1:8123", vllm_memory=0.5)
    command = server_command(config, device="cpu", model="m", model_config=Lfm2Config())
    text = " ".join(command)
    for part in ("--middleware grpo.generators.vllm.lease.RunLease",
                 "--model m", "--port 8123", "--max-lora-rank 16", "--enable-lora",
                 "--logprobs-mode processed_logprobs", "--generation-config vllm",
                 '{"custom_ops": ["all", "-rotary_embedding"]}',
                 "--kv-cache-memory-bytes 536870912"):  # fmt: skip
        assert part in text
    gpu = server_command(config, device="cuda", model="m", model_config=LlamaConfig())
    assert "--gpu-memory-utilization 0.5" in " ".join(gpu)
    assert "--enforce-eager" not in gpu


@pytest.mark.parametrize(
    ("path", "weight_sync"),
    [("/v1/completions", "adapter"), ("/v1/completions", "merged"), ("/collective_rpc", "merged")],
)
async def test_an_internal_error_is_repeated_thrice_and_told(open_generator_on, path, weight_sync):
    failure = (500, {"error": "CUDA error: an illegal memory access"})
    async with fake_servers() as [server], open_generator_on([server], weight_sync) as generator:
        server.failures = {path: [failure] * 2}
        (completion,) = await ask(generator, PROMPT)
        assert completion.completion_ids[0] == 10
        server.failures = {path: [failure] * 3}
        generator.policy.version += 1
        call = generator.sync() if path == "/collective_rpc" else ask(generator, PROMPT)
        with pytest.raises(GeneratorError, match=r"HTTP 500: .*illegal memory access") as error:
            await call
        assert "unavailable" not in str(error.value)
        assert server.count("/health") >= 5


CHOICE = {"token_ids": [3, 4], "logprobs": {"token_logprobs": [-0.5, 0]}}


@pytest.mark.parametrize(
    "choices",
    [
        [], [CHOICE, CHOICE], {"a": 1}, None, ["text"], [None], [{}],
        [CHOICE | {"token_ids": []}], [CHOICE | {"token_ids": [3]}], [CHOICE | {"token_ids": None}],
        [CHOICE | {"token_ids": ["3", "4"]}], [CHOICE | {"token_ids": [3, -1]}],
        [CHOICE | {"logprobs": None}], [CHOICE | {"logprobs": {"token_logprobs": [-0.5, None]}}],
        [CHOICE | {"logprobs": {"token_logprobs": [-0.5, float("nan")]}}],
        [{"token_ids": [3] * 99, "logprobs": {"token_logprobs": [-1.0] * 99}}],
    ],
)  # fmt: skip
async def test_a_response_without_what_was_asked_for_is_one_line(open_generator_on, choices):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        server.failures = {"/v1/completions": [(200, {"choices": choices})]}
        with pytest.raises(GeneratorError, match=r"must respond with (1 choices|up to 32 tokens)"):
            await ask(generator, PROMPT)
        server.failures = {"/v1/completions": [(200, {"choices": [CHOICE]})]}
        (completion,) = await ask(generator, PROMPT)
        assert (completion.completion_ids, completion.logprobs) == ((3, 4), (-0.5, 0.0))


def test_servers_are_given_a_path_that_they_find_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = PolicyFolders(".")
    assert folders.root.parent == tmp_path
    folders.remove()


async def test_an_internal_error_of_a_dying_server_is_waited_for(open_generator_on, caplog):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        await generator.sync()
        server.failures = {
            "/v1/completions": [(500, {"error": "EngineCore died"})],
            "/health": [(503, {})] * 3,
        }
        (completion,) = await ask(generator, PROMPT)
        assert completion.completion_ids[0] == 10
        assert server.count("/health") > 3
        assert "HTTP 500 from /v1/completions: " in caplog.text
        assert "EngineCore died" in caplog.text
        server.failures = {
            "/v1/completions": [(500, {"error": "EngineCore died"})] * 100,
            "/health": [(503, {})] * 100,
        }
        generator._clients[0].deadline_s = 0.1
        with pytest.raises(GeneratorError, match="has been unavailable"):
            await ask(generator, PROMPT)


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
async def test_a_second_run_on_a_server_is_refused(
    open_generator_on, make_policy, tmp_path, weight_sync
):
    async with fake_servers() as [server]:
        async with open_generator_on([server], weight_sync, run="runs/first") as first:
            await first.sync()
            weights, adapters = server.weights, dict(server.adapters)
            second = VLLMServers(
                make_policy(double=False), [server.url], folder=str(tmp_path), weight_sync="merged"
            )
            for _ in range(2):
                with pytest.raises(
                    GeneratorError,
                    match=rf"belongs to another run, runs/first \(process {os.getpid()} on .*"
                    r"End that run or restart the server.*--vllm-url",
                ):
                    await second.sync()
            await second.close()
            assert (server.weights, server.adapters) == (weights, adapters)
            assert (await ask(first, PROMPT))[0].completion_ids[0] == 10
        async with open_generator_on([server], weight_sync) as third:  # the first gave it back
            await third.sync()


async def test_requests_of_others_are_refused_while_a_run_has_the_server(open_generator_on):
    body = {"method": "reload_weights", "kwargs": {"weights_path": "/somewhere"}}
    async with fake_servers() as [server], httpx.AsyncClient(base_url=server.url) as other:
        assert (await other.post("/v1/completions", json={"n": 1})).is_success
        async with open_generator_on([server], "merged") as generator:
            await generator.sync()
            weights = server.weights
            for headers in ({}, {RUN_HEADER: "grpo-other"}):
                for response in (
                    await other.post("/collective_rpc", json=body, headers=headers),
                    await other.delete(LEASE_PATH, headers=headers),
                ):
                    assert response.status_code == 409
                    assert "a run (process" in response.json()["holder"]
            assert (await other.get("/v1/models")).is_success
            assert server.weights == weights
        assert (await other.post(LEASE_PATH)).status_code == 409  # names no run


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
async def test_a_run_whose_server_another_one_took_ends(
    open_generator_on, make_policy, weight_sync
):
    async with fake_servers() as [server], open_generator_on([server], weight_sync) as generator:
        await generator.sync()
        await server.die()
        await server.start()
        taken = {"name": "runs/other", "folder": str(generator._folders.root)}
        async with httpx.AsyncClient(base_url=server.url) as other:
            headers = {RUN_HEADER: "grpo-other"}
            assert (await other.post(LEASE_PATH, params=taken, headers=headers)).is_success
        for call in (lambda: ask(generator, PROMPT), generator.sync):
            with pytest.raises(GeneratorError, match="belongs to another run, runs/other"):
                await call()


def hold_a_folder(root, pipe):
    folders = PolicyFolders(root)
    pipe.send(str(folders.root))
    signal.pause()


async def test_a_killed_run_leaves_neither_a_lease_nor_a_folder(open_generator_on, tmp_path):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_a_folder, args=(str(tmp_path), there))
    process.start()
    folder = Path(here.recv())
    async with fake_servers() as [server], httpx.AsyncClient(base_url=server.url) as other:
        lease = {"name": "runs/killed", "folder": str(folder)}
        await other.post(LEASE_PATH, params=lease, headers={RUN_HEADER: folder.name})
        alive = PolicyFolders(str(tmp_path))
        assert folder.exists()
        alive.remove()
        process.kill()
        process.join()
        async with open_generator_on([server]) as generator:
            assert not folder.exists()
            assert (await ask(generator, PROMPT))[0].completion_ids[0] == 10


async def test_a_server_without_a_lease_is_refused(open_generator_on):
    async with fake_servers() as [server], open_generator_on([server]) as generator:
        server.application = server.answer
        server.failures = {LEASE_PATH: [(404, {"detail": "Not Found"})]}
        with pytest.raises(GeneratorError, match=r"keeps no lease.*grpo serve-vllm"):
            await generator.sync()


@pytest.mark.parametrize("weight_sync", ["adapter", "merged"])
async def test_a_full_folder_is_one_line(open_generator_on, tmp_path, weight_sync):
    async with fake_servers() as [server], open_generator_on([server], weight_sync) as generator:
        await generator.sync()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            with pytest.raises(
                GeneratorError, match=rf"cannot write {tmp_path}.*vllm_folder.*large"
            ):
                await generator.sync()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (completion,) = await ask(generator, PROMPT)  # with the older weights
        assert completion.completion_ids[0] == 10
        await generator.sync()
