import asyncio
import copy
import math
import signal
import time
from dataclasses import replace

import pytest
import torch

import grpo.training.trainer
import grpo.training.updater
from envs.base import EnvError, Task
from envs.pool import EnvPool
from envs.replay import SharingPool
from envs.scripted import ScriptedEnv
from grpo.algorithm.batch import reward_tensors
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.algorithm.losses import policy_loss
from grpo.distributed import World, without_prompts
from grpo.errors import ConfigError
from grpo.shutdown import Shutdown, Stopped
from grpo.training.checkpoint import checkpoints
from grpo.training.metrics import METRICS
from grpo.types import Completion
from tests.support.models import TASK

WORKS = {"steps": 3, "valid_action_bonus": 0.5}  # a signal in nearly every group


async def run(trainer):
    return [step.metrics async for step in trainer.train()]


def updates(steps):
    done = [metrics for metrics in steps if not metrics["update/skipped"]]
    assert done, "every step was skipped"
    return done


def parameters(trainer):
    return [p.detach().clone() for p in trainer.policy.parameters()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def batches_of(trainer):
    """Keep the batches of a trainer's updates; return the list that receives them."""
    batches, accumulate = [], trainer.updater.accumulate
    trainer.updater.accumulate = lambda batch: batches.append(batch) or accumulate(batch)
    return batches


async def success(trainer):
    """Compute the exact probability of the right click on the page."""
    policy, (task,) = trainer.policy, set(trainer.task_sampler.draw(0, 1))
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
    trainer.rollouts.pool = SharingPool(trainer.rollouts.pool)
    before = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    episodes = []
    done = [step async for step in trainer.train(episodes.append)]
    assert [step.step for step in done] == [1, 2, 3]
    assert trainer.step == trainer.policy.version == 3
    assert trainer.episodes == len(episodes) == 3 * 2 * 8
    for step in done:
        assert [len(group.episodes) for group in step.groups] == [8, 8]
        assert step.advantages.shape == (16, 1)
    steps = [step.metrics for step in done]
    for metrics in steps:
        per_name = {name for name in METRICS if "<" in name}  # of each task, or of several ranks
        assert set(metrics) == set(METRICS) - per_name | {"success/click-word"}
        assert metrics["success/click-word"] == metrics["success"]
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["episode_length"] == metrics["completion_length"] == 1
        # Generator and trainer are one model in float32: only rounding is between them.
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


async def test_sharing_episodes_changes_nothing_but_what_is_executed(make_trainer, tmp_path):
    options = {"steps": 3, "task": "click-two-words", "max_turns": 3, **WORKS}
    one, other = make_trainer(**options), make_trainer(output=str(tmp_path / "shared"), **options)
    other.rollouts.pool = SharingPool(other.rollouts.pool)
    alone, shared = await run(one), await run(other)
    for parameter, of_other in zip(parameters(one), parameters(other), strict=True):
        torch.testing.assert_close(parameter, of_other, rtol=0, atol=1e-6)
    for metrics, of_shared in zip(alone, shared, strict=True):  # sampled in other batches
        same = {name: value for name, value in metrics.items() if "seconds" not in name}
        assert {name: of_shared[name] for name in same} == pytest.approx(same, rel=1e-5, abs=1e-6)
    assert shared[-1]["env/episodes_executed"] < 3 * 2 * 8 == other.episodes
    assert shared[-1]["env/steps_shared"] > 0 == shared[-1]["env/replay_mismatches"]


async def test_negated_advantages_make_the_policy_worse(make_trainer, monkeypatch):
    monkeypatch.setattr(
        grpo.training.trainer, "turn_advantages", lambda *a, **k: -turn_advantages(*a, **k)
    )
    trainer = make_trainer(steps=25, groups_per_step=4)
    before = await success(trainer)
    await run(trainer)
    assert await success(trainer) < before / 3


async def test_equal_rewards_skip_the_update(make_trainer):
    trainer = make_trainer(steps=2, task="click-two-words")  # one action: never solved
    trainer.task_sampler.draw = lambda *_: [Task("click-two-words", 3)] * 2
    before = parameters(trainer)
    steps = await run(trainer)
    assert [metrics["update/skipped"] for metrics in steps] == [1, 1]
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1, 1]
    assert equal(before, parameters(trainer))
    assert trainer.policy.version == 0


async def test_a_step_without_surviving_groups_ends_the_run(make_trainer):
    trainer = make_trainer(lambda: ScriptedEnv(fail_at=1), steps=1)
    before = parameters(trainer)
    with pytest.raises(EnvError, match="no group of the step survived"):
        await run(trainer)
    assert equal(before, parameters(trainer))
    assert (trainer.step, trainer.episodes) == (0, 0)
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000000"]
    failures = {"env/failures": 32, "env/episodes_dropped": 16, "env/groups_dropped": 2}
    assert {k: v for k, v in trainer.counters().items() if v} == failures


async def test_a_step_continues_with_the_surviving_groups(make_trainer):
    """One session: seven episodes of the first group fail twice, none of the second one."""
    fail_at = iter([1] * 7 + [0] + [1] * 7)
    trainer = make_trainer(lambda: ScriptedEnv(next(fail_at)), steps=1, size=1)
    (metrics,) = await run(trainer)
    assert metrics["env/groups_dropped"] == 1
    assert metrics["env/episodes_dropped"] == 7
    assert trainer.episodes == 8


async def test_failures_cost_retries_but_not_the_run(make_trainer):
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


async def test_the_kl_penalty_acts_where_rewards_are_equal(make_trainer, make_policy):
    policy = make_policy(double=False)
    trainer = make_trainer(steps=4, beta=1.0, learning_rate=0.01, policy=policy, seed=3)
    trainer.task_sampler.draw = lambda *_: (
        [Task("click-two-words", 7)] * 2
    )  # one action: never solved
    steps = await run(trainer)
    assert [metrics["frac_reward_zero_std"] for metrics in steps] == [1] * 4
    assert steps[-1]["kl"] < 0.9 * steps[0]["kl"]


async def test_a_strong_kl_penalty_keeps_the_policy_near_the_reference(make_trainer):
    free, penalized = make_trainer(steps=10), make_trainer(steps=10, beta=100.0)
    before = await success(penalized)
    await run(free)
    await run(penalized)
    assert await success(penalized) < before + 0.1 < await success(free)


async def test_gradients_are_clipped_and_the_learning_rate_rises(make_trainer):
    trainer = make_trainer(max_grad_norm=1e-3, warmup_steps=2, **WORKS)
    steps = await run(trainer)
    assert all(metrics["grad_norm"] > 1e-3 for metrics in steps)  # before clipping
    rates = [metrics["learning_rate"] for metrics in steps]
    assert rates == pytest.approx([0.01, 0.02, 0.03])
    total = sum(p.grad.square().sum() for p in trainer.policy.parameters()).sqrt()
    assert total.item() == pytest.approx(1e-3, rel=1e-2)


async def test_micro_batches_do_not_change_the_gradient(make_trainer):
    gradients = []
    for max_tokens in (10_000, 25):
        trainer = make_trainer(max_tokens_per_microbatch=max_tokens, **(WORKS | {"steps": 1}))
        await run(trainer)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.policy.parameters()]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-6)


async def test_sampling_and_training_have_the_same_temperature(make_trainer):
    trainer = make_trainer(temperature=2.0, **WORKS)
    assert all(metrics["sampling/logp_difference"] < 1e-5 for metrics in await run(trainer))


async def test_minutes(make_trainer, monkeypatch):
    clock = iter(range(0, 10_000, 5))  # seconds; each call takes five
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
    trainer.config = trainer.config.replace(steps=4)
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


async def test_the_state_holds_everything_that_later_steps_depend_on(make_trainer):
    fail_at = iter([1, 2])
    trainer = make_trainer(lambda: ScriptedEnv(next(fail_at, 0)), group_size=64, steps=1, seed=1)
    await run(trainer)
    state = trainer.state()
    assert state["tasks"]["seeds"] == [[TASK.name, TASK.seed, pytest.approx(0.1, abs=0.1)]]
    other = make_trainer()
    other.load_state(state)
    assert other.task_sampler.state() == trainer.task_sampler.state()
    assert other.rollouts.counters == trainer.rollouts.counters
    assert other.counters()["env/failures"] == 2
    assert other.seconds == trainer.seconds


async def test_equal_seeds_give_equal_runs(make_trainer):
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


async def test_a_request_to_stop_ends_the_run_after_the_running_step(make_trainer):
    shutdown = Shutdown()
    trainer = make_trainer(shutdown=shutdown, steps=50, save_every=0, keep_checkpoints=1)

    async def train():
        async with shutdown:
            async for step in trainer.train():
                if step.step == 3:
                    shutdown.request(signal.SIGTERM)
            return shutdown.requested

    assert await asyncio.create_task(train())
    assert trainer.step == 3
    assert [path.name for path in checkpoints(trainer.config.folder)] == ["step-000003"]


async def test_a_request_during_a_step_does_not_cut_it_short(make_trainer):
    shutdown, groups = Shutdown(), []
    trainer = make_trainer(shutdown=shutdown, steps=50, valid_action_bonus=0.5)

    def request_once(episode):
        if not shutdown.requested:
            shutdown.request(signal.SIGINT)

    async def train():
        async with shutdown:
            groups.extend([step.groups async for step in trainer.train(request_once)])

    await asyncio.create_task(train())
    assert [[len(group.episodes) for group in step] for step in groups] == [[8, 8]]
    assert trainer.policy.version == 1


async def test_a_request_before_the_first_step(make_trainer):
    shutdown = Shutdown()
    shutdown.request_from_thread()
    trainer = make_trainer(shutdown=shutdown, steps=50)
    assert await run(trainer) == []
    assert trainer.step == 0


async def test_a_second_request_cancels_the_running_step(make_trainer, monkeypatch):
    monkeypatch.setattr("grpo.shutdown.SAME_S", 0.0)
    shutdown, closed = Shutdown(), []

    class Slow(ScriptedEnv):
        async def step(self, text):
            for _ in range(2):
                shutdown.request(signal.SIGINT)
            await asyncio.sleep(60)

        async def close(self):
            closed.append(self)
            await super().close()

    trainer = make_trainer(Slow, shutdown=shutdown, steps=50)

    async def train():
        async with shutdown:
            await run(trainer)

    with pytest.raises(Stopped, match="SIGINT"):
        await asyncio.create_task(train())
    assert trainer.step == 0
    assert len(closed) == trainer.rollouts.pool.created > 0


async def test_the_generator_is_told_of_every_update(make_trainer):
    works = WORKS | {"seed": 8}  # each of four steps has a gradient
    trainer = make_trainer(**works)
    told = []

    async def sync():
        told.append((trainer.step, trainer.policy.version))

    trainer.generator.sync = sync
    await run(trainer)
    assert told == [(1, 1), (2, 2), (3, 3)]  # the step is counted, and saved, before
    resumed = make_trainer(**(works | {"steps": 4}), resume=True)
    told.clear()
    trainer.generator.sync, resumed.generator.sync = None, sync
    trainer = resumed
    await run(resumed)
    assert told == [(3, 3), (4, 4)]  # of the checkpoint's policy as well


async def test_groups_of_equal_rewards_are_replaced(make_trainer):
    """One action never solves a two-word task: its groups have no signal, the others do."""
    unsolved, good = Task("click-two-words", 7), Task("click-word", 7)

    def draw(step, count, attempt=0):
        return [good, good] if attempt else [unsolved, good]

    trainer = make_trainer(steps=1, valid_action_bonus=0.0)
    trainer.task_sampler.draw = draw
    (plain,) = await run(trainer)
    assert plain["groups_replaced"] == 0
    assert plain["frac_reward_zero_std"] >= 0.5
    trainer = make_trainer(steps=1, max_resamples=3, group_size=64, seed=8)
    trainer.task_sampler.draw, batches = draw, batches_of(trainer)
    (step,) = [step async for step in trainer.train()]
    # Two rounds: the unsolved group and a good one, then a second good one instead of the first.
    assert step.metrics["groups_replaced"] == 1
    assert trainer.episodes == 3 * 64
    assert step.metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)  # of all groups played
    (batch,) = batches
    assert len(batch) == 2 * 64
    assert batch.token_weights.sum().item() == pytest.approx(1, abs=1e-6)
    # The advantages are 0 in the group that was replaced, and the batch's in the others.
    assert [group.task for group in step.groups] == [unsolved, good, good]
    assert step.advantages.shape == (3 * 64, 1)
    assert not step.advantages[:64].any()
    advantages = step.advantages[64:, 0]
    assert advantages.all()
    assert torch.equal(advantages.sort().values, batch.advantages.sort().values)


async def test_a_replaced_group_with_unequal_rewards_has_advantage_0_too(make_trainer, group_of):
    """Scaled over the batch, a replaced group's rewards would shift the others' advantages."""
    equal = group_of((5, ([3], [5])), (5, ([3], [6])))
    good = group_of((1, ([3], [5])), (0, ([3], [7])))
    trainer = make_trainer(max_resamples=1, scale_rewards="batch", gap_stop=0)
    metrics, advantages = trainer.update([equal, good, good])
    assert metrics["groups_replaced"] == 1
    std = torch.tensor([1.0, 0, 1, 0]).std() + 1e-4  # of the groups that were used
    expected = torch.tensor([0, 0, 0.5, -0.5, 0.5, -0.5]) / std
    torch.testing.assert_close(advantages[:, 0], expected)


@pytest.mark.parametrize("scale", ["group", "batch"])
async def test_every_turn_has_the_advantage_of_the_credit_rule(make_trainer, scale):
    """A completion that is not an action changes nothing: three turns on the same page."""
    seen = {}
    for credit in ("episode", "discounted", "steps"):
        options = {"credit": credit, "discount": 0.5, "step_weight": 2.0, "max_turns": 3}
        trainer = make_trainer(steps=1, valid_action_bonus=0.5, scale_rewards=scale, **options)
        batches = batches_of(trainer)
        (step,) = [step async for step in trainer.train()]
        rule = CreditRule(credit, 0.5, 2.0)
        assert trainer.credit == rule
        expected = turn_advantages(*reward_tensors(step.groups), rule, scale=scale)
        assert torch.equal(step.advantages, expected)  # what is reported
        turns = [len(e.turns) for group in step.groups for e in group.episodes]
        used = [a for row, n in zip(expected.tolist(), turns, strict=True) for a in row[:n] if a]
        (batch,) = batches
        assert sorted(batch.advantages.tolist()) == sorted(used)  # what is used
        assert len(batch) > 16  # of 16 episodes
        seen[credit] = sorted(used)
    assert seen["episode"] != seen["discounted"] != seen["steps"] != seen["episode"]


async def test_a_group_is_replaced_if_no_turn_has_an_advantage(make_trainer, group_of):
    """Two successes, in one turn and in two: under a discount that is a signal."""
    quick, slow = (([3], [5], 1, "p"),), (([3], [6], 0, "p"), ([3], [5], 1, "p"))
    even, other = group_of((1, *quick), (1, *slow)), group_of((1, *quick), (0, ([3], [7])))
    rounds = {}
    for credit in ("episode", "discounted", "steps"):
        trainer, rounds[credit] = make_trainer(credit=credit, max_resamples=2, gap_stop=0), 0

        async def collect(tasks, *_, credit=credit, **__):
            rounds[credit] += 1
            return [even, other][: len(tasks)]

        trainer.rollouts.collect = collect
        groups, _ = await trainer.collect(0)
        metrics, advantages = trainer.update(groups)
        assert len(advantages) == sum(len(group.episodes) for group in groups)
        assert metrics["frac_reward_zero_std"] == pytest.approx(1 - 1 / len(groups))
        assert metrics["groups_replaced"] == (3 if credit == "episode" else 0)
    assert rounds == {"episode": 3, "discounted": 1, "steps": 1}


async def test_resampling_is_bounded(make_trainer):
    trainer = make_trainer(steps=1, max_resamples=2)
    trainer.task_sampler.draw = lambda *_: [Task("click-two-words", 7)] * 2
    (metrics,) = await run(trainer)
    assert trainer.episodes == 3 * 2 * 8
    assert metrics["update/skipped"] == 1
    assert metrics["groups_replaced"] == 0  # without any signal no group is left out


async def test_replacements_are_sampled_with_other_seeds(make_trainer):
    """Even on the same page: the group's number differs."""
    trainer = make_trainer(steps=1, max_resamples=3, group_size=4)
    seen = []

    play = trainer.rollouts.collect

    async def collect(tasks, group_size, seed, *, first=0, **options):
        seen.append((len(tasks), seed, first))
        return await play(tasks, group_size, seed, first=first, **options)

    trainer.rollouts.collect = collect
    trainer.task_sampler.draw = lambda *_: [Task("click-two-words", 7)] * 2
    await run(trainer)
    seed = [trainer.config.seed, 0]
    assert seen == [(2, seed, first) for first in (0, 2, 4, 6)]


async def test_one_step_ahead(make_trainer, monkeypatch):
    """The next step's rollouts are played during the update, by the policy before it."""
    trainer = make_trainer(steps=6, max_staleness=1, valid_action_bonus=0.5, gap_stop=0)
    collect, begun = trainer.collect, []

    def noted(step, on_episode):
        begun.append((step, trainer.step))
        return collect(step, on_episode)

    async def at_once(prompt_ids, *, seed, **_):  # as a generator with its own model does
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


async def test_rollouts_ahead_of_a_stop_are_cancelled(make_trainer):
    shutdown, steps = Shutdown(), []

    class Slow(ScriptedEnv):
        async def step(self, text):
            steps.append(text)
            await asyncio.sleep(60 * (len(steps) > 16))  # those of the second step
            return await super().step(text)

    trainer = make_trainer(Slow, shutdown=shutdown, steps=50, max_staleness=1)
    async with asyncio.timeout(30):
        async for _ in trainer.train():
            while len(steps) <= 16:
                await asyncio.sleep(0.01)
            shutdown.received.append(signal.SIGINT)
    assert trainer.step == 1
    await trainer.rollouts.pool.close()
    assert not [t for t in asyncio.all_tasks() if "collect" in repr(t)]


async def test_training_one_step_ahead_improves_success(make_trainer):
    trainer = make_trainer(steps=25, groups_per_step=4, max_staleness=1)
    await run(trainer)
    assert await success(trainer) > 0.9


async def test_importance_weights_correct_the_generators_gap(make_trainer, monkeypatch):
    """A generator whose log-probabilities are 0.3 too low: each token weighs e^0.3."""
    gradients = {}
    for level in ("none", "token", "sequence"):
        options = {"valid_action_bonus": 0.5, "max_grad_norm": 0.0, "gap_stop": 0}
        trainer = make_trainer(steps=1, importance=level, **options)
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
    for level in ("token", "sequence"):  # a completion is one token here
        expected = gradients["none"] * math.exp(0.3)
        torch.testing.assert_close(gradients[level], expected, rtol=1e-3, atol=1e-6)


async def test_a_resumed_run_has_the_same_number_of_groups(make_trainer):
    await run(make_trainer(steps=1))
    with pytest.raises(ConfigError, match="had 2 groups over all ranks, and has 3 now: change gro"):
        make_trainer(steps=2, groups_per_step=3, resume=True)


class TwoRanks(World):
    """Rank 1 of two without the other process; `others` are the groups that rank 0 played."""

    def __init__(self, others):
        super().__init__({})
        self.rank, self.world_size, self.others = 1, 2, others

    def all_gather(self, value):
        return [copy.deepcopy(value), value]

    def all_gather_groups(self, groups):
        others = [without_prompts(group) for group in self.others]
        return [*others, *groups], range(len(others), len(others) + len(groups))

    def all_reduce_gradients(self, parameters):
        pass


@pytest.mark.parametrize("credit", ["episode", "steps"])
def test_a_rank_shows_the_advantages_among_all_ranks(make_trainer, group_of, credit):
    """Scaled by the standard deviation over both ranks, as the update is; its own rows alone."""
    p, q = (([3], [5], reward, "p") for reward in (0, 1)), ([3, 4], [6], 1, "q")
    wrong, right = p
    theirs = [group_of((1, right), (0, wrong)), group_of((9, q), (0, wrong), (0, wrong))]
    ours = [group_of((1, right), (0, wrong, wrong)), group_of((2, wrong, wrong, q), (0, wrong))]
    trainer = make_trainer(world=TwoRanks(theirs), scale_rewards="batch", credit=credit, gap_stop=0)
    batches = batches_of(trainer)
    _, advantages = trainer.update(ours)
    tensors = reward_tensors([*theirs, *ours])
    expected = turn_advantages(*tensors, trainer.credit, scale="batch")[5:]
    assert torch.equal(advantages, expected)
    alone = turn_advantages(*reward_tensors(ours), trainer.credit, scale="batch")
    assert (advantages - alone).abs().max() > 0.1
    used = [a for row, n in zip(expected.tolist(), (1, 2, 3, 1), strict=True) for a in row[:n]]
    assert sorted(batches[0].advantages.tolist()) == sorted(filter(None, used))


def test_ranks_that_start_from_different_weights_are_noticed(make_trainer):
    class Different(TwoRanks):
        def all_gather(self, value):
            return [value, (value[0], value[1] + 1)]

    with pytest.raises(ConfigError, match="the ranks start from different adapters"):
        make_trainer(world=Different([]))
