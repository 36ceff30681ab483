import asyncio
import math
import time
from dataclasses import replace

import pytest
import torch

import grpo.algorithm.batch
import grpo.training.trainer
import grpo.training.updater
from envs.base import EnvError, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.algorithm.batch import make_batch, sort_batch
from grpo.algorithm.credit import CreditRule
from grpo.algorithm.losses import policy_loss
from grpo.config import ConfigError
from grpo.training.checkpoint import checkpoints
from grpo.training.metrics import METRICS
from grpo.types import Completion
from tests.support.scripted import TASK

WORKS = {"steps": 3, "valid_action_bonus": 0.5}  # a signal in nearly every group


async def run(trainer):
    return [metrics async for metrics in trainer.train()]


def updates(steps):
    done = [metrics for metrics in steps if not metrics["update/skipped"]]
    assert done, "every step was skipped"
    return done


def parameters(trainer):
    return [p.detach().clone() for p in trainer.policy.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


async def success(trainer):
    """The exact probability of the right answer on the page."""
    policy, (task,) = trainer.policy, set(trainer.sampler.draw(0, 1))
    observation = await ScriptedEnv().reset(task)
    prompt = policy.tokenizer.apply_chat_template(
        list(observation.messages), add_generation_prompt=True
    )["input_ids"]
    word = observation.goal.removeprefix("Click ").removesuffix(".")
    (line,) = [line for line in observation.page.splitlines() if repr(word) in line]
    right = policy.tokenizer.convert_tokens_to_ids(f"click('{line[1:3]}')")
    assert right != policy.tokenizer.unk_token_id
    with torch.no_grad():
        return policy.model(torch.tensor([prompt])).logits[0, -1].softmax(-1)[right].item()


async def test_a_run(make_trainer, tmp_path):
    trainer = make_trainer(beta=0.01, **WORKS)
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    steps = await run(trainer)
    assert len(steps) == trainer.step == trainer.policy.version == 3
    assert trainer.episodes == 3 * 2 * 8
    assert [len(group.episodes) for group in trainer.groups] == [8, 8]
    for metrics in steps:
        assert set(metrics) == set(METRICS) - {"success/<task>"} | {"success/click-word"}
        assert metrics["success/click-word"] == metrics["success"]
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["episode_length"] == metrics["completion_length"] == 1
        # Sampler and trainer are one model in float32: nothing but rounding between them.
        assert metrics["sampling/logp_difference"] < 1e-5
        assert 0 < metrics["entropy"] < math.log(16)
        assert metrics["tokens/distinct"] < metrics["tokens/rows"]
    after = trainer.policy.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()
    assert trainer.seconds["rollout"] == pytest.approx(sum(s["seconds/rollout"] for s in steps))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "gspo", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"loss": "cispo"},
        {"aggregation": "dr_grpo", "scale_rewards": "none", "baseline": "leave_one_out"},
        {"credit": "discounted", "max_turns": 3},
        {"credit": "steps", "max_turns": 3},
    ],
    ids=str,
)
async def test_training_improves_success(make_trainer, options):
    trainer = make_trainer(steps=25, groups_per_step=4, **options)
    assert await success(trainer) < 0.1
    steps = await run(trainer)
    assert await success(trainer) > 0.9
    assert steps[-1]["success"] > 0.8


async def test_with_the_advantages_turned_around_it_gets_worse(make_trainer, monkeypatch):
    advantages = grpo.algorithm.batch.turn_advantages
    monkeypatch.setattr(
        grpo.algorithm.batch, "turn_advantages", lambda *a, **k: -advantages(*a, **k)
    )
    trainer = make_trainer(steps=25, groups_per_step=4)
    before = await success(trainer)
    await run(trainer)
    assert await success(trainer) < before / 3


async def test_equal_rewards_skip_the_update(make_trainer):
    trainer = make_trainer(steps=2, task="click-two-words")  # one action: never solved
    trainer.sampler.draw = lambda *_: [Task("click-two-words", 3)] * 2
    before = parameters(trainer)
    steps = await run(trainer)
    assert [metrics["update/skipped"] for metrics in steps] == [1, 1]
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1, 1]
    assert equal(before, parameters(trainer))
    assert trainer.policy.version == 0


async def test_a_step_that_nobody_survives_ends_the_run(make_trainer):
    trainer = make_trainer(lambda: ScriptedEnv(fail_at=1), steps=1)
    before = parameters(trainer)
    with pytest.raises(EnvError, match="no group of the step survived"):
        await run(trainer)
    assert equal(before, parameters(trainer))
    assert (trainer.step, trainer.episodes) == (0, 0)
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000000"]
    failures = {"env/failures": 32, "env/episodes_dropped": 16, "env/groups_dropped": 2}
    assert {k: v for k, v in trainer.failures().items() if v} == failures


async def test_a_step_goes_on_with_the_groups_that_are_left(make_trainer):
    """One session: of the first group seven episodes fail twice, of the second none."""
    fail_at = iter([1] * 7 + [0] + [1] * 7)
    trainer = make_trainer(lambda: ScriptedEnv(next(fail_at)), steps=1, size=1)
    (metrics,) = await run(trainer)
    assert metrics["env/groups_dropped"] == 1
    assert metrics["env/episodes_dropped"] == 7
    assert trainer.episodes == 8


async def test_failures_cost_retries_and_not_the_run(make_trainer):
    made = []

    def factory():
        made.append(ScriptedEnv(fail_at=7 if len(made) % 2 else 0))
        return made[-1]

    trainer = make_trainer(factory, **WORKS)
    steps = await run(trainer)
    assert steps[-1]["env/failures"] > 0
    assert trainer.episodes == 3 * 2 * 8 - steps[-1]["env/episodes_dropped"]


async def test_the_kl_penalty(make_trainer):
    trainer = make_trainer(beta=0.1, **WORKS)
    steps = await run(trainer)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-9)  # a new adapter is the reference
    assert steps[1]["kl"] > 1e-4
    free = updates(await run(make_trainer(**WORKS)))  # measured without the penalty too
    assert all("kl" in metrics for metrics in free)
    unmeasured = updates(await run(make_trainer(log_kl=False, **WORKS)))
    assert all("kl" not in metrics for metrics in unmeasured)


async def test_the_penalty_acts_where_the_rewards_are_equal(make_trainer, make_policy):
    trainer = make_trainer(steps=4, beta=1.0, learning_rate=0.01, policy=make_policy(double=False))
    trainer.sampler.draw = lambda *_: [Task("click-two-words", 7)] * 2  # one action: never solved
    steps = await run(trainer)
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1] * 4
    assert steps[-1]["kl"] < 0.9 * steps[0]["kl"]


async def test_a_strong_kl_penalty_holds_the_policy(make_trainer):
    free, held = make_trainer(steps=10), make_trainer(steps=10, beta=100.0)
    before = await success(held)
    await run(free)
    await run(held)
    assert await success(held) < before + 0.1 < await success(free)


async def test_the_second_update_of_a_batch_is_off_policy(make_trainer):
    once, twice = make_trainer(**WORKS), make_trainer(updates_per_batch=2, **WORKS)
    for metrics in updates(await run(once)):
        assert (metrics["ratio"], metrics["approx_kl"]) == (1, 0)
    steps = updates(await run(twice))
    for metrics in steps:
        assert abs(metrics["ratio"] - 1) > 1e-4
        assert metrics["approx_kl"] > 1e-5
    assert twice.policy.version == 2 * len(steps)


async def test_steps_are_small_and_clipped(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3, warmup_steps=2, **WORKS)
    steps = await run(trainer)
    assert all(metrics["grad_norm"] > 1e-3 for metrics in steps)  # as it was before clipping
    rates = [metrics["learning_rate"] for metrics in steps]
    assert rates == pytest.approx([0.01, 0.02, 0.03])
    total = sum(p.grad.square().sum() for p in trainer.policy.parameters()).sqrt()
    assert total.item() == pytest.approx(1e-3, rel=1e-2)


async def test_the_gradient_is_that_of_the_whole_batch(make_trainer):
    """However small the micro-batches are."""
    gradients = []
    for max_tokens in (10_000, 25):
        trainer = make_trainer(max_tokens_per_microbatch=max_tokens, **(WORKS | {"steps": 1}))
        await run(trainer)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


async def test_temperature_is_that_of_the_samples(make_trainer):
    trainer = make_trainer(temperature=2.0, **WORKS)
    assert all(metrics["sampling/logp_difference"] < 1e-5 for metrics in await run(trainer))


async def test_minutes(make_trainer, monkeypatch):
    clock = iter(range(0, 10_000, 5))  # seconds: each look at it takes five
    monkeypatch.setattr(grpo.training.trainer.time, "monotonic", lambda: float(next(clock)))
    trainer = make_trainer(steps=50, minutes=1.0)
    steps = await run(trainer)
    assert 0 < len(steps) < 10
    assert (trainer.config.folder / "checkpoints" / f"step-{len(steps):06d}").is_dir()


async def test_a_gradient_that_is_not_finite_skips_the_step(make_trainer):
    trainer = make_trainer(**(WORKS | {"steps": 1}))
    before = parameters(trainer)
    hook = trainer.policy.parameters()[3].register_hook(lambda gradient: gradient * math.nan)
    (metrics,) = await run(trainer)
    assert metrics["update/skipped"] == 1
    assert math.isnan(metrics["grad_norm"])
    assert equal(before, parameters(trainer))
    assert trainer.policy.version == 0
    hook.remove()
    trainer.config = replace(trainer.config, steps=4)
    done = updates(await run(trainer))
    assert trainer.policy.version == len(done)
    assert not equal(before, parameters(trainer))


async def test_two_steps_and_two_more_are_four(make_trainer, make_policy, tmp_path):
    options = {"valid_action_bonus": 0.5, "warmup_steps": 3, "learning_rate": 0.01}
    whole = make_trainer(steps=4, output=str(tmp_path / "whole"), **options)
    metrics = await run(whole)
    options["output"] = str(tmp_path / "parts")
    await run(make_trainer(steps=2, **options))
    # The adapter that the checkpoint replaces starts elsewhere.
    policy = make_policy(double=False, start=True, seed=5)
    resumed = make_trainer(steps=4, resume=True, policy=policy, **options)
    assert (resumed.step, resumed.episodes, policy.version) == (2, 32, 2)
    again = await run(resumed)
    assert equal(parameters(whole), parameters(resumed))
    for one, other in zip(metrics[2:], again, strict=True):
        same = [k for k in one if not k.startswith(("seconds/", "sampling/"))]
        assert [one[k] for k in same] == [other[k] for k in same]
    assert resumed.seconds["rollout"] > 0


async def test_all_that_decides_what_comes_next_is_in_the_state(make_trainer):
    fail_at = iter([1, 2])
    trainer = make_trainer(lambda: ScriptedEnv(next(fail_at, 0)), group_size=64, steps=1)
    await run(trainer)
    torch.rand(5)  # a new trainer would begin elsewhere
    state = trainer.state()
    drawn = torch.rand(3)
    assert state["tasks"]["seeds"] == [[TASK.name, TASK.seed, pytest.approx(0.1, abs=0.1)]]
    other = make_trainer()
    other.load_state(state)
    assert torch.equal(torch.rand(3), drawn)
    assert other.sampler.state() == trainer.sampler.state()
    assert other.rollouts.counters == trainer.rollouts.counters
    assert other.failures()["env/failures"] == 2
    assert other.seconds == trainer.seconds


async def test_a_run_can_be_repeated(make_trainer):
    one, other = make_trainer(**WORKS), make_trainer(**WORKS)
    await run(one)
    await run(other)
    assert equal(parameters(one), parameters(other))
    different = make_trainer(seed=1, **WORKS)
    await run(different)
    assert not equal(parameters(one), parameters(different))


async def test_the_loss_is_called_with_the_settings(make_trainer, monkeypatch):
    seen = []

    def spy(*args, **options):
        seen.append(options)
        return policy_loss(*args, **options)

    monkeypatch.setattr(grpo.training.updater, "policy_loss", spy)
    options = {"epsilon_low": 0.1, "epsilon_high": 0.3, "delta": 2.0, "kl": "k2", "beta": 0.5}
    await run(make_trainer(steps=1, valid_action_bonus=0.5, **options))
    assert {name: seen[0][name] for name in options} == options


async def test_more_episodes_than_sessions(make_trainer):
    trainer = make_trainer(steps=1, size=3)
    await run(trainer)
    assert isinstance(trainer.rollouts.pool, EnvPool)
    assert trainer.rollouts.pool.created == 3
    assert trainer.episodes == 16


async def test_stopping_ends_after_the_step_that_runs(make_trainer):
    trainer = make_trainer(steps=50, save_every=0, keep_checkpoints=1)
    assert not trainer.stop()  # nothing runs: nothing to wait for
    assert await run(trainer) == []
    trainer = make_trainer(steps=50, save_every=0, keep_checkpoints=1)
    async for _ in trainer.train():
        if trainer.step == 3:
            assert trainer.stop()
    assert trainer.step == 3
    assert not trainer.running
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000003"]


async def test_the_generator_is_told_of_every_update(make_trainer):
    trainer = make_trainer(**WORKS)
    told = []

    async def sync():
        told.append((trainer.step, trainer.policy.version))

    trainer.generator.sync = sync
    await run(trainer)
    assert told == [(0, 1), (1, 2), (2, 3)]
    resumed = make_trainer(**(WORKS | {"steps": 4}), resume=True)
    told.clear()
    trainer.generator.sync, resumed.generator.sync = None, sync
    trainer = resumed
    await run(resumed)
    assert told == [(3, 3), (3, 4)]  # the checkpoint's policy is news to it as well


async def test_groups_of_equal_rewards_are_replaced(make_trainer):
    """Two-word tasks are never solved by one action: they teach nothing, the others do."""
    dull, good, taught = Task("click-two-words", 7), Task("click-word", 7), []

    def draw(step, count, attempt=0):
        return [good, good] if attempt else [dull, good]

    def learn(trainer):
        trainer.sampler.draw = draw
        accumulate = trainer.updater.accumulate
        trainer.updater.accumulate = lambda batch: taught.append(batch) or accumulate(batch)
        return trainer

    (plain,) = await run(learn(make_trainer(steps=1, valid_action_bonus=0.0)))
    assert plain["groups_replaced"] == 0
    assert plain["frac_reward_zero_std"] >= 0.5
    trainer = learn(make_trainer(steps=1, max_resamples=3, group_size=64))
    (metrics,) = await run(trainer)
    # Two rounds: the dull group and a good one, then a second good one in the dull one's place.
    assert metrics["groups_replaced"] == 1
    assert trainer.episodes == 3 * 64
    assert metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)  # of all that was played
    weights = taught[-1].token_weights.sum()
    assert len(taught[-1]) == 2 * 64
    assert weights.item() == pytest.approx(1, abs=1e-6)


async def test_credit_decides_what_a_turn_learns(make_trainer):
    """An answer that is no action changes nothing: three turns on the same page."""
    seen = {}
    for credit in ("episode", "discounted", "steps"):
        options = {"credit": credit, "discount": 0.5, "step_weight": 2.0, "max_turns": 3}
        trainer = make_trainer(steps=1, valid_action_bonus=0.5, **options)
        update, accumulate = trainer.update, trainer.updater.accumulate

        def keep(groups, update=update, credit=credit, options=options):
            rule = CreditRule(credit, 0.5, 2.0)
            seen[credit] = [make_batch(groups, credit=rule, drop_zero_advantages=True)]
            return update(groups)

        def note(batch, accumulate=accumulate, credit=credit):
            seen[credit].append(batch)
            return accumulate(batch)

        trainer.update, trainer.updater.accumulate = keep, note
        await run(trainer)
        expected, got = seen[credit]
        assert torch.equal(sort_batch(expected).advantages, got.advantages)
        assert len(got) > 16  # of 16 episodes
    rows = [sorted(expected.advantages.tolist()) for expected, _ in seen.values()]
    assert rows[0] != rows[1] != rows[2] != rows[0]


async def test_a_group_is_replaced_if_no_turn_has_an_advantage(make_trainer, group_of):
    """Two successes, one in a turn and one in two: under a discount that is a signal."""
    quick, slow = (([3], [5], 1, "p"),), (([3], [6], 0, "p"), ([3], [5], 1, "p"))
    even, other = group_of((1, *quick), (1, *slow)), group_of((1, *quick), (0, ([3], [7])))
    rounds = {}
    for credit in ("episode", "discounted", "steps"):
        trainer, rounds[credit] = make_trainer(credit=credit, max_resamples=2), 0

        async def collect(tasks, *_, credit=credit, **__):
            rounds[credit] += 1
            return [even, other][: len(tasks)]

        trainer.rollouts.collect = collect
        groups, _ = await trainer.collect(0)
        metrics = trainer.update(groups)
        assert metrics["frac_reward_zero_std"] == pytest.approx(1 - 1 / len(groups))
        assert metrics["groups_replaced"] == (3 if credit == "episode" else 0)
    assert rounds == {"episode": 3, "discounted": 1, "steps": 1}


async def test_resampling_has_a_bound(make_trainer):
    trainer = make_trainer(steps=1, max_resamples=2)
    trainer.sampler.draw = lambda *_: [Task("click-two-words", 7)] * 2
    (metrics,) = await run(trainer)
    assert trainer.episodes == 3 * 2 * 8
    assert metrics["update/skipped"] == 1
    assert metrics["groups_replaced"] == 0  # none taught: none was left out for another


async def test_replaced_groups_are_sampled_anew(make_trainer):
    """The same page again is another group: other numbers decide what is sampled."""
    trainer = make_trainer(steps=1, max_resamples=3, group_size=4)
    seen = []

    async def collect(tasks, group_size, seed, *, first=0):
        seen.append((len(tasks), seed, first))
        return await type(trainer.rollouts).collect(
            trainer.rollouts, tasks, group_size, seed, first=first
        )

    trainer.rollouts.collect = collect
    trainer.sampler.draw = lambda *_: [Task("click-two-words", 7)] * 2
    await run(trainer)
    assert seen == [(2, [0, 0], 0), (2, [0, 0], 2), (2, [0, 0], 4), (2, [0, 0], 6)]


async def test_one_step_ahead(make_trainer, monkeypatch):
    """The next step's rollouts are played during the update, by the policy before it."""
    trainer = make_trainer(steps=6, max_staleness=1, valid_action_bonus=0.5)
    collect, begun = trainer.collect, []

    def noted(step):
        begun.append((step, trainer.step))
        return collect(step)

    async def at_once(prompt_ids, *, seed, **_):  # as a sampler of its own would
        token, version = seed % 16, trainer.policy.version
        return Completion(tuple(prompt_ids), (token,), (-math.log(16),), version, "length")

    update = trainer.update
    trainer.update = lambda groups: time.sleep(0.2) or update(groups)
    monkeypatch.setattr(trainer, "collect", noted)
    monkeypatch.setattr(trainer.generator, "generate", at_once)
    steps = await run(trainer)
    assert begun == [(0, 0), *((k + 1, k) for k in range(5))]
    assert [metrics["sampling/staleness"] for metrics in steps] == [0, 1, 1, 1, 1, 1]
    assert trainer.config.importance_level == "token"
    assert steps[-1]["sampling/is_ratio"] != pytest.approx(1, abs=0.01)


async def test_ahead_of_a_stop_nothing_is_left_running(make_trainer):
    trainer = make_trainer(steps=50, max_staleness=1)
    async for _ in trainer.train():
        trainer.stop()
    assert trainer.step == 1
    await trainer.rollouts.pool.close()
    assert not [t for t in asyncio.all_tasks() if "collect" in repr(t)]


async def test_training_one_step_ahead_improves_success(make_trainer):
    trainer = make_trainer(steps=25, groups_per_step=4, max_staleness=1)
    await run(trainer)
    assert await success(trainer) > 0.9


async def test_importance_weights_are_those_of_the_samplers_gap(make_trainer, monkeypatch):
    """A sampler that reports log-probabilities 0.3 too low: each token weighs e^0.3."""
    gradients = {}
    for level in ("none", "token", "sequence"):
        trainer = make_trainer(steps=1, valid_action_bonus=0.5, importance=level, max_grad_norm=0.0)
        generate = trainer.generator.generate

        async def off(*args, generate=generate, **options):
            completion = await generate(*args, **options)
            lower = tuple(p - 0.3 for p in completion.logprobs)
            return replace(completion, logprobs=lower)

        monkeypatch.setattr(trainer.generator, "generate", off)
        (metrics,) = await run(trainer)
        assert metrics["sampling/is_ratio"] == pytest.approx(math.exp(0.3), rel=1e-4)
        assert metrics["sampling/logp_difference"] == pytest.approx(0.3, rel=1e-4)
        assert metrics["sampling/is_bounded"] == 0
        grads = [p.grad.flatten() for p in trainer.policy.parameters()]
        gradients[level] = torch.cat(grads)
    for level in ("token", "sequence"):  # an answer is one token here
        expected = gradients["none"] * math.exp(0.3)
        torch.testing.assert_close(gradients[level], expected, rtol=1e-3, atol=1e-6)


async def test_a_step_of_other_groups_is_not_resumed(make_trainer):
    await run(make_trainer(steps=1))
    with pytest.raises(ConfigError, match="of 2 groups over all ranks, and is of 3: change groups"):
        make_trainer(steps=2, groups_per_step=3, resume=True)
