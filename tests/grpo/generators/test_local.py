import asyncio
import math
from collections import Counter

import numpy as np
import pytest
import torch

from grpo.algorithm.batch import rows_from_completions
from grpo.generators.local import LocalGenerator

PROMPTS = [[3, 4, 5, 6, 8], [3, 4, 5, 9], [7, 2, 7]]
FAMILIES = ["llama", "lfm2", "mistral"]  # tree cache, with convolutions, copied cache


@pytest.fixture(params=FAMILIES)
def policy(request, make_policy):
    return make_policy(request.param)


async def sample(generator, requests, **options):
    """Sample completions of (prompt, seed) requests, all at once."""
    return await asyncio.gather(
        *(generator.generate(prompt, seed=seed, **options) for prompt, seed in requests)
    )


def many(seeds=4):
    return [(prompt, seed) for prompt in PROMPTS for seed in range(seeds)]


def recomputed(policy, completions, temperature=1.0):
    """Compute the log-probabilities of completions as the update does."""
    batch = rows_from_completions(completions)
    with torch.no_grad():
        logprobs = policy.logprobs(batch, temperature=temperature).logprobs
    rows = zip(logprobs, batch.completion_mask, strict=True)
    return [tuple(row[mask].tolist()) for row, mask in rows]


def assert_close(completions, expected, atol=1e-10):
    for completion, row in zip(completions, expected, strict=True):
        assert len(completion.logprobs) == len(completion.completion_ids) == len(row)
        assert np.abs(np.subtract(completion.logprobs, row)).max() < atol


def at_step(policy, monkeypatch, number, function):
    """Call a function in step `number`, counted from 1, before the logits are computed."""
    head, count = policy.head, Counter()

    def counted(hidden):
        count["steps"] += 1
        if count["steps"] == number:
            function()
        return head(hidden)

    monkeypatch.setattr(policy, "head", counted)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
async def test_reported_logprobs_are_those_of_the_update(policy, temperature):
    generator = LocalGenerator(policy, max_new_tokens=6)
    completions = await sample(generator, many(), temperature=temperature)
    assert_close(completions, recomputed(policy, completions, temperature))
    assert len({c.completion_ids for c in completions}) > 6
    assert sum(len(c.completion_ids) for c in completions) == generator.tokens_sampled


async def test_an_end_token_ends_a_completion_and_is_kept(policy):
    completions = await sample(LocalGenerator(policy, max_new_tokens=6), many(40))
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for c in completions:
        assert 0 not in c.completion_ids[:-1]
        if c.finish_reason == "stop":
            assert c.completion_ids[-1] == 0
        else:
            assert len(c.completion_ids) == 6
            assert c.completion_ids[-1] != 0


async def test_the_seed_determines_the_completion(policy):
    alone = [
        await LocalGenerator(policy, max_new_tokens=6).generate(prompt, seed=seed)
        for prompt, seed in many()
    ]
    generator = LocalGenerator(policy, max_new_tokens=6)
    together = await sample(generator, many())
    again = await sample(generator, many()[::-1])
    for one, two, three in zip(alone, together, again[::-1], strict=True):
        assert one.completion_ids == two.completion_ids == three.completion_ids
        assert_close([one, two], [three.logprobs] * 2)
    assert len({c.completion_ids for c in together[:4]}) > 1


@pytest.mark.parametrize("temperature", [0.6, 2.0])
async def test_first_tokens_follow_the_softmax(make_policy, temperature):
    policy, n = make_policy(), 4000
    requests = [(PROMPTS[0], seed) for seed in range(n)]
    completions = await sample(
        LocalGenerator(policy, max_new_tokens=1), requests, temperature=temperature
    )
    logits = policy.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = n * (logits / temperature).softmax(-1).detach().numpy()
    counts = np.bincount([c.completion_ids[0] for c in completions], minlength=len(expected))
    # Pool rare tokens: Pearson's statistic needs an expected count of at least 5 per cell.
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic, k = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
    # P(chi2_k > k + 2 sqrt(k x) + 2 x) <= exp(-x) (Laurent and Massart 2000), here 1e-6.
    x = math.log(1e6)
    assert k >= 4
    assert statistic < k + 2 * math.sqrt(k * x) + 2 * x


async def test_greedy_is_the_argmax(policy):
    generator = LocalGenerator(policy, max_new_tokens=5)
    completions = await sample(generator, many(2), temperature=0.0)
    for (prompt, _), completion in zip(many(2), completions, strict=True):
        ids = list(prompt)
        for token in completion.completion_ids:
            assert token == policy.model(torch.tensor([ids])).logits[0, -1].argmax()
            ids.append(token)
    assert_close(completions, recomputed(policy, completions))  # at temperature 1


async def test_greedy_and_sampled_share_a_batch(policy):
    generator = LocalGenerator(policy, max_new_tokens=4)
    mixed = await asyncio.gather(
        *(generator.generate(PROMPTS[0], seed=5, temperature=t) for t in (0.0, 1.0, 3.0))
    )
    for completion, temperature in zip(mixed, (0.0, 1.0, 3.0), strict=True):
        fresh = LocalGenerator(policy, max_new_tokens=4)
        alone = await fresh.generate(PROMPTS[0], seed=5, temperature=temperature)
        assert completion.completion_ids == alone.completion_ids
        assert_close([completion], [alone.logprobs])


async def test_a_new_version_drops_the_cache(policy, perturb):
    generator = LocalGenerator(policy, max_new_tokens=6)
    old = await sample(generator, many())
    perturb(policy, seed=2)
    policy.version += 1
    new = await sample(generator, many())
    assert_close(new, recomputed(policy, new))
    assert {c.policy_version for c in old} == {0}
    assert {c.policy_version for c in new} == {1}
    with pytest.raises(AssertionError):
        assert_close(old, recomputed(policy, old), atol=0.01)


async def test_without_a_new_version_the_cache_is_stale(make_policy, perturb):
    """Shows that the test above fails if versions are ignored."""
    policy = make_policy()
    generator = LocalGenerator(policy, max_new_tokens=6)
    await sample(generator, many())
    perturb(policy, seed=2)
    stale = await sample(generator, many())
    with pytest.raises(AssertionError):
        assert_close(stale, recomputed(policy, stale), atol=0.01)


@pytest.mark.parametrize("family", ["llama", "lfm2"])
@pytest.mark.parametrize("capacity", [1, 9, 11, 14, 20, 40])
async def test_a_small_cache_gives_the_same_completions(make_policy, family, capacity):
    policy = make_policy(family)
    large = await sample(LocalGenerator(policy, max_new_tokens=6), many())
    generator = LocalGenerator(policy, max_new_tokens=6, cache_tokens=capacity)
    for _ in range(2):
        small = await sample(generator, many())
        assert [c.completion_ids for c in small] == [c.completion_ids for c in large]
        assert_close(small, [c.logprobs for c in large])
    assert generator._cache.capacity <= max(capacity, 5 + 6)


async def test_a_full_cache_is_emptied_for_the_next_prompt(make_policy):
    """Each prompt leaves a chain without a branch, and shares nothing with the next one."""
    generator = LocalGenerator(make_policy(), max_new_tokens=2, cache_tokens=16)
    for first in (1, 2, 3):
        completion = await generator.generate([first] * 12, seed=0)
        assert_close([completion], recomputed(generator.policy, [completion]))


async def test_attention_reads_no_other_prompts(make_policy):
    """The rest of the cache costs the next request nothing."""
    generator = LocalGenerator(make_policy(), max_new_tokens=4)
    await sample(generator, [([3, n, *[5] * 40], 0) for n in range(5, 10)])
    (completion,) = await sample(generator, [([3, 4, 5, 6], 0)])
    assert len(generator._cache) > 5 * 40
    (chunk,) = generator._cache.buffers.chunks  # of the last token but one, the last forward
    assert len(chunk.keys) == 4 + len(completion.completion_ids) - 1
    assert_close([completion], recomputed(generator.policy, [completion]))


@pytest.mark.parametrize("family", ["llama", "lfm2"])
async def test_an_update_in_mid_completion(family, make_policy, perturb, monkeypatch):
    """Earlier tokens are sampled from the old policy, later ones from the new policy."""
    policy = make_policy(family)
    monkeypatch.setattr(type(policy), "stop_ids", frozenset())

    def update():
        perturb(policy, seed=2)
        policy.version += 1

    generator = LocalGenerator(policy, max_new_tokens=6, cache_tokens=8)
    first = [asyncio.create_task(generator.generate(PROMPTS[0], seed=s)) for s in range(2)]
    at_step(policy, monkeypatch, 9, update)  # the second request decodes alone, after the first
    completions = await asyncio.gather(*first)
    late = recomputed(policy, completions)
    assert np.abs(np.subtract(completions[1].logprobs[3:], late[1][3:])).max() < 1e-10
    assert np.abs(np.subtract(completions[1].logprobs[:2], late[1][:2])).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "lfm2"])
async def test_a_prompt_is_computed_once(family, make_policy):
    tree = LocalGenerator(make_policy(family), max_new_tokens=1)
    await sample(tree, many(8))
    distinct = {tuple(prompt[: t + 1]) for prompt in PROMPTS for t in range(len(prompt))}
    assert tree.tokens_computed == len(distinct)
    await sample(tree, many(8))  # not again while the policy is the same
    assert tree.tokens_computed == len(distinct)


async def test_without_the_tree_each_prompt_is_computed_once(make_policy):
    generator = LocalGenerator(make_policy("mistral"), max_new_tokens=1)
    await sample(generator, many(8))
    assert generator.tokens_computed == sum(map(len, PROMPTS))


@pytest.mark.parametrize("family", ["llama", "lfm2"])
async def test_a_later_turn_reuses_the_earlier_one(family, make_policy):
    generator = LocalGenerator(make_policy(family), max_new_tokens=1)
    await generator.generate([3, 4, 5, 6], seed=0)
    await generator.generate([3, 4, 5, 6, 9, 9], seed=0)
    assert generator.tokens_computed == 6


@pytest.mark.parametrize("prompt", [[], [3] * 128, [3] * 200])
async def test_a_prompt_that_is_too_long(policy, prompt):
    generator = LocalGenerator(policy)
    with pytest.raises(ValueError, match=f"1 to 127 tokens .* got {len(prompt)}"):
        await generator.generate(prompt, seed=0)


async def test_the_longest_prompt_leaves_one_token(policy):
    completion = await LocalGenerator(policy, cache_tokens=64).generate([3] * 127, seed=0)
    assert len(completion.completion_ids) == 1


async def test_a_limit_below_one_token_is_rejected(policy):
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        await LocalGenerator(policy).generate(PROMPTS[0], seed=0, max_new_tokens=0)


async def test_a_cancelled_request_does_not_affect_others(policy, monkeypatch):
    expected = await sample(LocalGenerator(policy, max_new_tokens=6), many())
    generator = LocalGenerator(policy, max_new_tokens=6)
    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(generator.generate(p, seed=s)) for p, s in many()]
    at_step(policy, monkeypatch, 2, lambda: loop.call_soon_threadsafe(tasks[1].cancel))
    tasks[7].cancel()  # before it has started
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[7], asyncio.CancelledError)
    for n, (one, other) in enumerate(zip(done, expected, strict=True)):
        if n not in (1, 7):
            assert one.completion_ids == other.completion_ids
    after = await sample(generator, many())
    assert [c.completion_ids for c in after] == [c.completion_ids for c in expected]


async def test_an_error_reaches_the_waiting_requests_only(policy, monkeypatch):
    expected = await sample(LocalGenerator(policy, max_new_tokens=6), many())

    def fail():
        raise MemoryError("out of memory")

    generator = LocalGenerator(policy, max_new_tokens=6)
    at_step(policy, monkeypatch, 2, fail)
    done = await asyncio.gather(
        *(generator.generate(p, seed=s) for p, s in many()), return_exceptions=True
    )
    assert any(isinstance(one, MemoryError) for one in done)
    after = await sample(generator, many())
    assert [c.completion_ids for c in after] == [c.completion_ids for c in expected]
    assert_close(after, recomputed(policy, after))


async def test_busy_time_and_default_limit(make_policy):
    generator = LocalGenerator(make_policy(), max_new_tokens=1)
    assert len((await generator.generate(PROMPTS[0], seed=0)).completion_ids) == 1
    longer = await sample(generator, [(PROMPTS[0], s) for s in range(8)], max_new_tokens=3)
    assert max(len(c.completion_ids) for c in longer) == 3
    assert generator.busy_seconds > 0
