"""A real vLLM server: weights over HTTP, a kill in mid-request, and the deadline."""

import asyncio

import httpx
import pytest

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.sync_check import check_sync
from grpo.generators.vllm.servers import VLLMServers
from tests.support.vllm_server import VLLMServer

PROMPT = [*range(300, 440)]
BOUND = 1e-3


@pytest.fixture(scope="module")
def server(lfm2_path, tmp_path_factory):
    server = VLLMServer(lfm2_path, tmp_path_factory.mktemp("server") / "log")
    server.start()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def policy(make_policy):
    return make_policy("lfm2")


async def test_adapters_reach_the_server(server, policy, changed, difference):
    generator = VLLMServers(policy, [server.url], max_new_tokens=8, weight_sync="adapter")
    report = await check_sync(policy, generator, temperature=0.8)
    assert report.gap < BOUND
    assert report.changed_gap < BOUND
    with changed(policy):
        stale = await generator.generate(PROMPT, seed=0)
        await generator.sync()
        fresh = await asyncio.gather(*(generator.generate(PROMPT, seed=i) for i in range(4)))
        greedy = await generator.generate(PROMPT, seed=0, temperature=0)
        assert difference(policy, fresh) < BOUND
        assert difference(policy, [greedy]) < BOUND
        assert difference(policy, [stale]) > 30 * BOUND
        assert {c.policy_version for c in fresh} == {stale.policy_version + 1}
        assert len({c.completion_ids for c in fresh}) == 4
    await generator.close()
    models = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [model["id"] for model in models] == [policy.name]  # the adapters are unloaded


async def test_cancelled_requests_are_aborted_on_the_server(server, policy):
    generator = VLLMServers(policy, [server.url], weight_sync="adapter")
    pending = asyncio.create_task(generator.generate(PROMPT, seed=0, max_new_tokens=3000))
    await server.until_running(1)
    pending.cancel()
    async with asyncio.timeout(20):
        await server.until_running(0)
    await generator.close()


async def test_a_request_survives_a_kill_of_the_server(server, policy, changed, difference):
    generator = VLLMServers(policy, [server.url], weight_sync="adapter", deadline_s=120)
    with changed(policy):
        await generator.sync()
        pending = asyncio.create_task(generator.generate(PROMPT, seed=0, max_new_tokens=1000))
        await server.until_running(1)
        server.kill()
        server.start()
        completion = await pending
        assert difference(policy, [completion]) < BOUND
        assert len(completion.completion_ids) > 100
    await generator.close()


async def test_merged_weights_reach_the_server(server, policy):
    generator = VLLMServers(policy, [server.url], max_new_tokens=8, weight_sync="merged")
    report = await check_sync(policy, generator, temperature=0.8)
    assert report.gap < BOUND
    assert report.changed_gap < BOUND
    await generator.close()


async def test_a_server_belongs_to_one_run(server, policy, changed, difference):
    first = VLLMServers(policy, [server.url], max_new_tokens=8, weight_sync="merged", run="runs/a")
    with changed(policy):
        await first.sync()
    second = VLLMServers(policy, [server.url], max_new_tokens=8, weight_sync="merged")
    with pytest.raises(GeneratorError, match=r"belongs to another run, runs/a \(process"):
        await check_sync(policy, second)
    await second.close()
    reload = {"method": "reload_weights", "kwargs": {"weights_path": policy.name}}
    assert httpx.post(f"{server.url}/collective_rpc", json=reload).status_code == 409
    with changed(policy):
        assert difference(policy, [await first.generate(PROMPT, seed=0)]) < BOUND
    await first.close()
    third = VLLMServers(policy, [server.url], max_new_tokens=8, weight_sync="merged")
    assert (await check_sync(policy, third)).gap < BOUND
    await third.close()


async def test_waiting_for_a_server_ends_at_the_deadline(server, policy):
    generator = VLLMServers(policy, [server.url], weight_sync="adapter", deadline_s=2)
    await generator.sync()
    server.kill()
    with pytest.raises(
        GeneratorError, match=rf"{server.url} has been unavailable for 2 s.*grpo serve-vllm"
    ):
        await generator.generate(PROMPT, seed=0)
    await generator.close()


async def test_a_server_for_smaller_adapters_is_refused_at_once(server, make_policy):
    server.start("--lora-r", "1")
    server.wait()
    generator = VLLMServers(make_policy("lfm2"), [server.url], weight_sync="adapter")
    with pytest.raises(
        ConfigError, match=r"smaller rank than lora_r: .*greater than max_lora_rank"
    ):
        await generator.sync()
    await generator.close()
