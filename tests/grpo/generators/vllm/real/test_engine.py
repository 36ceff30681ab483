"""vLLM in this process: what it reports is what the trainer computes, after each update too."""

import asyncio
from collections import Counter

import pytest

from grpo.config import ConfigError
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
    family, sync = request.param.split()
    engine = VLLMEngine(make_policy(family), max_new_tokens=8, sync=sync)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def tiny(make_policy):
    """An engine on the adapter road that answers quickly."""
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, sync="adapter")
    yield engine
    asyncio.run(engine.close())


async def sample(generator, n=2, **options):
    prompts = [PROMPT, [*PROMPT, 7]]
    return await asyncio.gather(
        *(generator.generate(prompt, seed=i, **options) for prompt in prompts for i in range(n))
    )


async def test_reports_what_the_trainer_computes(engine, changed, difference):
    policy = engine.policy
    for temperature in (0.0, 0.7):
        completions = await sample(engine, temperature=temperature)
        assert difference(policy, completions, temperature) < BOUND
        assert {c.policy_version for c in completions} == {policy.version}
    before = await sample(engine)
    with changed(policy):
        # Not yet given: the engine goes on with what it has, cached prompt included.
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


async def test_passes_the_start_up_test(engine):
    report = await check_sync(engine.policy, engine, temperature=0.8)
    assert report.gap < BOUND
    assert report.changed_gap < BOUND
    assert report.changed_shift > 50 * BOUND


async def test_an_end_token_ends_and_is_kept(tiny, monkeypatch):
    (greedy,) = {(await sample(tiny, temperature=0))[0]}
    token = greedy.completion_ids[2]
    first = greedy.completion_ids.index(token)
    monkeypatch.setattr(type(tiny.policy), "stop_ids", frozenset([token]))
    ended = await tiny.generate(PROMPT, seed=0, temperature=0)
    assert ended.finish_reason == "stop"
    assert greedy.finish_reason == "length"
    assert ended.completion_ids == greedy.completion_ids[: first + 1]
    assert len(ended.logprobs) == first + 1


async def test_equal_requests_are_one(tiny, monkeypatch):
    real, asked = tiny._loop.weights.engine.add_request, []

    def add(name, prompt, params, **options):
        asked.append((len(prompt["prompt_token_ids"]), params.temperature, params.n))
        return real(name, prompt, params, **options)

    monkeypatch.setattr(tiny._loop.weights.engine, "add_request", add)
    greedy, sampled = await asyncio.gather(sample(tiny, temperature=0), sample(tiny))
    assert Counter(asked) == Counter([(140, 0.0, 1), (141, 0.0, 1), (140, 1.0, 2), (141, 1.0, 2)])
    assert len({c.completion_ids for c in greedy}) == 2
    assert len({c.completion_ids for c in sampled}) == 4


async def test_cancelled_requests_are_ended(tiny):
    core = tiny._loop.weights.engine.engine_core.engine_core
    asked = [
        asyncio.create_task(tiny.generate(PROMPT, seed=i, max_new_tokens=1500)) for i in range(3)
    ]
    await tiny.generate([5, 6, 7], seed=0)  # the others are at work by now
    assert core.scheduler.get_num_unfinished_requests() == 3
    asked[0].cancel()
    await tiny.generate([5, 6, 7], seed=0)
    assert core.scheduler.get_num_unfinished_requests() == 2
    for task in asked[1:]:
        task.cancel()
    await tiny.generate([5, 6, 7], seed=0)
    assert core.scheduler.get_num_unfinished_requests() == 0
    assert not tiny._loop.weights.engine.output_processor.parent_requests


async def test_what_is_in_flight_ends_on_its_own_version(tiny, changed, difference):
    policy = tiny.policy
    asked = asyncio.create_task(tiny.generate(PROMPT, seed=0, max_new_tokens=64))
    await tiny.generate([5, 6, 7], seed=0, max_new_tokens=1)
    with changed(policy):
        await tiny.sync()
        assert not asked.done()
        new = await tiny.generate(PROMPT, seed=0)
        old = await asked
        assert new.policy_version == policy.version == old.policy_version + 1
        assert difference(policy, [new]) < BOUND
    assert difference(policy, [old]) < BOUND
    await tiny.sync()


async def test_a_module_that_is_not_served_is_named(tiny, monkeypatch):
    memory = tiny._loop.weights._memory
    modules, packed = memory._served
    fewer = {name for name in modules if "out_proj" not in name}
    monkeypatch.setattr(memory, "_served", (fewer, packed))
    with pytest.raises(ConfigError, match=r"serves no LoRA on model\.layers.*out_proj"):
        await tiny.sync()
    monkeypatch.undo()
    await tiny.sync()  # the engine goes on
    assert len(await sample(tiny)) == 4


async def test_an_engine_that_fails_says_so_to_all(make_policy, monkeypatch):
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, sync="adapter")
    monkeypatch.setattr(
        engine._loop.weights.engine, "step", lambda: (_ for _ in ()).throw(OSError("broken"))
    )
    with pytest.raises(GeneratorError, match="vLLM failed: OSError: broken"):
        await engine.generate(PROMPT, seed=0)
    with pytest.raises(GeneratorError, match="vLLM failed"):
        await engine.sync()
    await engine.close()
    with pytest.raises(GeneratorError, match="closed"):
        await engine.generate(PROMPT, seed=0)


async def test_closing_cancels_who_waits(make_policy):
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, sync="merged")
    asked = asyncio.create_task(engine.generate(PROMPT, seed=0, max_new_tokens=3000))
    await engine.generate([5, 6, 7], seed=0)
    await engine.close()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_without_its_setting_lfm2_fails_the_start_up_test(make_policy, monkeypatch):
    def unset(*args, **options):
        options = vllm_settings_options(*args, **options)
        assert options.pop("compilation_config")
        return options

    vllm_settings_options = vllm_engine.engine_options
    monkeypatch.setattr(vllm_engine, "engine_options", unset)
    engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8)
    with pytest.raises(GeneratorError, match=r"does not compute the same model.*custom_ops"):
        await check_sync(engine.policy, engine)
    await engine.close()


async def test_adapters_go_through_files_where_memory_is_no_road(
    make_policy, monkeypatch, changed, difference
):
    def gone(*_):
        raise AttributeError("no such name")

    monkeypatch.setattr(vllm_weights, "AdapterMemory", gone)
    with pytest.warns(UserWarning, match="takes no adapters from memory"):
        engine = VLLMEngine(make_policy("lfm2"), max_new_tokens=8, sync="adapter")
    root = engine._loop.weights._folders.root
    with changed(engine.policy):
        await engine.sync()
        assert difference(engine.policy, await sample(engine)) < BOUND
    assert len(list(root.iterdir())) == 2
    await engine.close()
    assert not root.exists()


async def test_what_cannot_be_asked_for(tiny):
    with pytest.raises(ValueError, match="prompt of 1 to"):
        await tiny.generate([5] * 5000, seed=0)
    with pytest.raises(ValueError, match="max_new_tokens"):
        await tiny.generate([5], seed=0, max_new_tokens=0)
    with pytest.raises(ConfigError, match="vllm_sleep needs a GPU"):
        VLLMEngine(tiny.policy, sleep=True)
    with pytest.raises(ConfigError, match="vllm_sync must be"):
        VLLMEngine(tiny.policy, sync="files")


def test_a_missing_vllm_names_the_extra(tiny, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install \"grpo-browser\[vllm\]\""):
        VLLMEngine(tiny.policy)
