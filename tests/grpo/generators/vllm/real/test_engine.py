"""vLLM in this process reports the log-probabilities that the trainer computes."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from grpo.errors import ConfigError
from grpo.generators.base import GeneratorError
from grpo.generators.sync_check import check_sync
from grpo.generators.vllm import engine as vllm_engine
from grpo.generators.vllm import engine_weights as vllm_weights
from grpo.generators.vllm.engine import VLLMEngine

PROMPT = [*range(300, 440)]  # longer than a block of vLLM's prefix cache, 128 tokens on a CPU
BOUND = 1e-3  # nats, mean; about 1e-5 is measured


@pytest.fixture(
    scope="module",
    params=["lfm2 adapter", "lfm2 merged", "bundled adapter", "bundled merged"],
)
def engine(request, make_policy):
    family, weight_sync = request.param.split()
    engine = VLLMEngine(make_policy(family), max_new_tokens=8, weight_sync=weight_sync)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def tiny(make_policy):
    """A fast engine that is given the adapter."""
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, weight_sync="adapter")
    yield engine
    asyncio.run(engine.close())


async def sample(generator, n=2, **options):
    prompts = [PROMPT, [*PROMPT, 7]]
    return await asyncio.gather(
        *(generator.generate(prompt, seed=i, **options) for prompt in prompts for i in range(n))
    )


async def test_reported_logprobs_are_those_of_the_trainer(engine, changed, difference):
    policy = engine.policy
    for temperature in (0.0, 0.7):
        completions = await sample(engine, temperature=temperature)
        assert difference(policy, completions, temperature) < BOUND
        assert {c.policy_version for c in completions} == {policy.version}
    before = await sample(engine)
    with changed(policy):
        # Not synced yet: the engine keeps its weights, and the cached prompt.
        stale = await sample(engine)
        assert difference(policy, stale) > 30 * BOUND
        assert {c.policy_version for c in stale} == {policy.version - 1}
        await engine.sync()
        fresh = await sample(engine, temperature=0.7)
        assert difference(policy, fresh, 0.7) < BOUND
        assert {c.policy_version for c in fresh} == {policy.version}
    assert difference(policy, fresh, 0.7) > 30 * BOUND
    await engine.sync()
    assert difference(policy, [*before, *await sample(engine)]) < BOUND


async def test_passes_the_sync_check(engine):
    report = await check_sync(engine.policy, engine, temperature=0.8)
    assert report.gap < BOUND
    assert report.changed_gap < BOUND
    assert report.changed_shift > 50 * BOUND


async def test_an_end_token_ends_a_completion_and_is_kept(tiny, monkeypatch):
    (greedy,) = {(await sample(tiny, temperature=0))[0]}
    token = greedy.completion_ids[2]
    first = greedy.completion_ids.index(token)
    monkeypatch.setattr(type(tiny.policy), "stop_ids", frozenset([token]))
    ended = await tiny.generate(PROMPT, seed=0, temperature=0)
    assert ended.finish_reason == "stop"
    assert greedy.finish_reason == "length"
    assert ended.completion_ids == greedy.completion_ids[: first + 1]
    assert len(ended.logprobs) == first + 1


async def test_equal_requests_become_one(tiny, monkeypatch):
    real, requests = tiny._thread.weights.engine.add_request, []

    def add(name, prompt, params, **options):
        requests.append((len(prompt["prompt_token_ids"]), params.temperature, params.n))
        return real(name, prompt, params, **options)

    monkeypatch.setattr(tiny._thread.weights.engine, "add_request", add)
    greedy, sampled = await asyncio.gather(sample(tiny, temperature=0), sample(tiny))
    assert Counter(requests) == Counter(
        [(140, 0.0, 1), (141, 0.0, 1), (140, 1.0, 2), (141, 1.0, 2)]
    )
    assert len({c.completion_ids for c in greedy}) == 2
    assert len({c.completion_ids for c in sampled}) == 4


async def test_cancelled_requests_are_aborted(tiny):
    core = tiny._thread.weights.engine.engine_core.engine_core
    pending = [
        asyncio.create_task(tiny.generate(PROMPT, seed=i, max_new_tokens=1500)) for i in range(3)
    ]
    await tiny.generate([5, 6, 7], seed=0)  # the others are running by now
    assert core.scheduler.get_num_unfinished_requests() == 3
    pending[0].cancel()
    await tiny.generate([5, 6, 7], seed=0)
    assert core.scheduler.get_num_unfinished_requests() == 2
    for task in pending[1:]:
        task.cancel()
    await tiny.generate([5, 6, 7], seed=0)
    assert core.scheduler.get_num_unfinished_requests() == 0
    assert not tiny._thread.weights.engine.output_processor.parent_requests


async def test_requests_in_flight_finish_with_their_version(tiny, changed, difference):
    policy = tiny.policy
    pending = asyncio.create_task(tiny.generate(PROMPT, seed=0, max_new_tokens=64))
    await tiny.generate([5, 6, 7], seed=0, max_new_tokens=1)
    with changed(policy):
        await tiny.sync()
        assert not pending.done()
        new = await tiny.generate(PROMPT, seed=0)
        old = await pending
        assert new.policy_version == policy.version == old.policy_version + 1
        assert difference(policy, [new]) < BOUND
    assert difference(policy, [old]) < BOUND
    await tiny.sync()


async def test_a_sleeping_engine_wakes_with_the_policy(engine, changed, difference, monkeypatch):
    """There is no memory to free on a CPU, so what level 2 discards is set to zero here."""
    inner, calls = engine._thread.weights.engine, []

    def fall_asleep(level):
        calls.append(level)
        if level == 2:
            inner.collective_rpc("reset_weights")
        assert inner.reset_prefix_cache()  # as level 1 and 2 do

    monkeypatch.setattr(inner, "sleep", fall_asleep)
    monkeypatch.setattr(inner, "wake_up", lambda: calls.append("awake"))
    monkeypatch.setattr(engine, "_sleep", True)
    level = 2 if engine.weight_sync == "merged" else 1
    await engine.sleep()
    assert difference(engine.policy, await sample(engine)) < BOUND
    assert calls == [level, "awake"]
    with changed(engine.policy):
        await engine.sleep()
        await engine.sync()
        assert difference(engine.policy, await sample(engine)) < BOUND
        assert calls == [level, "awake"] * 2
        if level == 2:  # the weights were gone
            inner.collective_rpc("reset_weights")
            assert inner.reset_prefix_cache()
            assert difference(engine.policy, await sample(engine)) > 30 * BOUND
    await engine.sync()


async def test_a_module_without_lora_support_is_named(tiny, monkeypatch):
    memory = tiny._thread.weights._memory
    modules, packed = memory._served
    fewer = {name for name in modules if "out_proj" not in name}
    monkeypatch.setattr(memory, "_served", (fewer, packed))
    with pytest.raises(ConfigError, match=r"does not support LoRA on model\.layers.*out_proj"):
        await tiny.sync()
    monkeypatch.undo()
    await tiny.sync()  # the engine still works
    assert len(await sample(tiny)) == 4


async def test_a_failed_engine_fails_all_requests(make_policy, monkeypatch):
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, weight_sync="adapter")
    monkeypatch.setattr(
        engine._thread.weights.engine, "step", lambda: (_ for _ in ()).throw(OSError("broken"))
    )
    with pytest.raises(GeneratorError, match="vLLM failed: OSError: broken"):
        await engine.generate(PROMPT, seed=0)
    with pytest.raises(GeneratorError, match="vLLM failed"):
        await engine.sync()
    await engine.close()
    with pytest.raises(GeneratorError, match="closed"):
        await engine.generate(PROMPT, seed=0)


async def test_closing_cancels_pending_requests(make_policy):
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, weight_sync="merged")
    pending = asyncio.create_task(engine.generate(PROMPT, seed=0, max_new_tokens=3000))
    await engine.generate([5, 6, 7], seed=0)
    await engine.close()
    with pytest.raises(asyncio.CancelledError):
        await pending


async def test_without_its_option_lfm2_fails_the_sync_check(make_policy, monkeypatch):
    def unset(*args, **options):
        options = original(*args, **options)
        assert options.pop("compilation_config")
        return options

    original = vllm_engine.engine_options
    monkeypatch.setattr(vllm_engine, "engine_options", unset)
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8)
    with pytest.raises(GeneratorError, match=r"does not compute the same model.*custom_ops"):
        await check_sync(engine.policy, engine)
    await engine.close()


async def test_adapters_are_passed_as_files_where_memory_is_not_supported(
    make_policy, monkeypatch, changed, difference
):
    def missing(*_):
        raise AttributeError("no such name")

    monkeypatch.setattr(vllm_weights, "AdapterMemory", missing)
    with pytest.warns(UserWarning, match="takes no adapters from memory"):
        engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, weight_sync="adapter")
    root = engine._thread.weights._folders.root
    with changed(engine.policy):
        await engine.sync()
        assert difference(engine.policy, await sample(engine)) < BOUND
    assert len(list(root.glob("policy-*"))) == 2
    await engine.close()
    assert not root.exists()


def test_an_engine_is_placed_on_the_gpu_of_its_policy(tiny):
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    vllm_config = tiny._thread.weights.engine.vllm_config
    assert vllm_config.device_config.device == tiny.policy.device
    executor = UniProcExecutor.__new__(UniProcExecutor)
    executor.vllm_config = SimpleNamespace(device_config=SimpleNamespace())
    executor.vllm_config.device_config.device = torch.device("cuda:3")
    _, _, local_rank = executor._distributed_args()
    assert local_rank == 3


async def test_invalid_options_and_requests(tiny):
    with pytest.raises(ValueError, match="prompt of 1 to"):
        await tiny.generate([5] * 5000, seed=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        await tiny.generate([5], seed=0, max_new_tokens=0)
    with pytest.raises(ConfigError, match="vllm_sleep needs a GPU"):
        VLLMEngine(tiny.policy, sleep=True)
    with pytest.raises(ConfigError, match="vllm_sync must be"):
        VLLMEngine(tiny.policy, weight_sync="files")


def test_a_missing_vllm_names_the_extra(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"grpo-browser\[vllm\]\""):
        VLLMEngine(tiny.policy)
