from dataclasses import replace

import pytest
import torch

import grpo.rollouts.demonstrators
import grpo.training.warm_start
from envs.base import EnvError, Task, TaskError
from envs.demonstrations import Demonstration
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.algorithm.batch import sort_batch
from grpo.config import Config
from grpo.distributed import World
from grpo.training.updater import Updater
from grpo.training.warm_start import WarmStart, demonstration_batch
from tests.support.models import TASK
from tests.support.scripted import OnePage

P, Q, R = [3, 4, 5, 6], [3, 4, 9, 2, 8], [7, 7]  # prompts


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_gradient_is_that_of_maximum_likelihood(
    make_policy, group_of, row_by_row, gradient, ranks
):
    policy = make_policy()
    one, other = group_of(
        (1, (P, [8, 9, 0]), ([*P, 8], [2, 0])), (1, (Q, [10, 0]), (R, [3, 4, 5, 6]))
    ).episodes
    batch = sort_batch(demonstration_batch([one, other], ranks))
    Updater(Config(), policy, World.single()).accumulate(batch)
    ours = torch.cat([p.grad.flatten() for p in policy.parameters()])
    logprobs, _ = row_by_row(policy.model, batch)
    likelihood = logprobs.sum() / batch.completion_mask.sum()
    theirs = gradient(policy, -likelihood / ranks)
    assert theirs.norm() > 1e-3
    # The weights of a batch are float32: 1 over the number of tokens is rounded.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_the_weights_of_one_episode_add_up_to_1(group_of):
    (episode, _) = group_of((1, (P, [8, 9, 0]), (P, [8])), (1, (Q, [8]))).episodes
    batch = demonstration_batch([episode])
    assert batch.rows() == [[*P, 8, 9, 0], [*P, 8]]
    assert batch.advantages.tolist() == [1, 1]
    assert batch.token_weights.sum().item() == pytest.approx(1)
    assert demonstration_batch([episode], 2).token_weights.sum().item() == pytest.approx(1 / 2)


@pytest.fixture
def start(make_policy, executor, monkeypatch):
    """A function that imitates on the one page whose words the tokenizer knows."""
    monkeypatch.setattr(grpo.rollouts.demonstrators, "TaskSampler", OnePage)

    async def run(env=ScriptedEnv, task=TASK.name, demonstrations=(), **options):
        settings = {"learning_rate": 0.003, "warmup_steps": 0, "max_new_tokens": 1} | options
        config = Config(task=task, groups_per_step=2, **settings)
        policy = make_policy(double=False, start=True)
        steps = []
        warm_start = WarmStart(
            config, policy, EnvPool(env, 4), executor, demonstrations=demonstrations
        )
        await warm_start.run(lambda step, metrics: steps.append((step, metrics)))
        assert [step for step, _ in steps] == list(range(warm_start.steps + 1))
        run.metrics = [metrics for _, metrics in steps]
        return policy, warm_start.imitated, warm_start.step

    return run


async def test_the_policy_learns_what_is_demonstrated(start):
    policy, count, steps = await start(warm_start_steps=12, loss="gspo", beta=0.1)
    assert (count, steps, policy.version) == (24, 12, 12)
    env = ScriptedEnv()
    observation = await env.reset(TASK)
    prompt = policy.tokenizer.apply_chat_template(
        list(observation.messages), add_generation_prompt=True
    )["input_ids"]
    tokenizer = policy.tokenizer
    ids = tokenizer.encode(env.demonstrate(), add_special_tokens=False)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :]
    probabilities = logits.softmax(-1)[range(len(ids) + 1), [*ids, tokenizer.eos_token_id]]
    assert (probabilities > 0.9).all()


@pytest.mark.parametrize(
    ("options", "rate"),
    [({"learning_rate": 0.002}, 0.02), ({"imitation_learning_rate": 0.007}, 0.007)],
)
async def test_the_learning_rate_is_imitation_s_own_and_falls_to_0(
    start, monkeypatch, options, rate
):
    rates = []

    class Noted(Updater):
        def update(self, batch):
            metrics = super().update(batch)
            rates.append(metrics["learning_rate"])
            return metrics

    monkeypatch.setattr(grpo.training.warm_start, "Updater", Noted)
    await start(warm_start_steps=4, **options)
    assert rates == pytest.approx([rate, rate * 3 / 4, rate / 2, rate / 4])


async def test_without_steps_nothing_is_imitated(start):
    policy, count, steps = await start(warm_start_steps=0)
    assert (count, steps, policy.version) == (0, 0, 0)


async def test_each_rank_plays_its_own_tasks(make_policy, executor, monkeypatch):
    """Of a step's draw for both ranks the second one plays the second half."""
    played, drawn = [], []

    class Sampler(OnePage):
        def draw(self, step, count, attempt=0, weights=()):
            drawn.append(count)
            return [Task(TASK.name, seed) for seed in range(count)]

    class Env(ScriptedEnv):
        async def reset(self, task, **options):
            played.append(task.seed)
            return await super().reset(TASK, **options)

    monkeypatch.setattr(grpo.rollouts.demonstrators, "TaskSampler", Sampler)
    world = World.single()
    monkeypatch.setattr(world, "all_reduce_gradients", lambda parameters: None)
    monkeypatch.setattr(world, "all_gather", lambda value: [value])
    world.rank, world.world_size = 1, 2
    config = Config(task=TASK.name, groups_per_step=2, warm_start_steps=1)
    policy = make_policy(double=False, start=True)
    warm_start = WarmStart(config, policy, EnvPool(Env, 4), executor, world)
    await warm_start.run()
    assert (warm_start.imitated, drawn, sorted(played)) == (2, [4], [2, 3])


async def test_long_prompts_are_cut_as_in_rollouts(make_policy, executor, monkeypatch):
    monkeypatch.setattr(grpo.rollouts.demonstrators, "TaskSampler", OnePage)
    prompts = []

    def make(episodes, world_size):
        prompts.extend(e.turns[0].completion.prompt_ids for e in episodes)
        return demonstration_batch(episodes, world_size)

    monkeypatch.setattr(grpo.training.warm_start, "demonstration_batch", make)
    config = Config(task=TASK.name, groups_per_step=1, warm_start_steps=1)
    policy, pool = make_policy(double=False, start=True), EnvPool(ScriptedEnv, 1)
    for limit in (0, 30):
        await WarmStart(config, policy, pool, executor, max_prompt_tokens=limit).run()
    whole, cut = map(len, prompts)
    assert cut <= 30 < whole


async def test_failed_demonstrations_are_not_imitated(start):
    class Wrong(ScriptedEnv):
        async def step(self, text):
            return await super().step("click('1')")

    with pytest.raises(TaskError, match=r"no demonstration of click-word succeeded$"):
        await start(Wrong, warm_start_steps=1)


async def test_without_a_demonstration_a_success_is_not_imitated(start):
    class Easy(ScriptedEnv):
        """Any text succeeds, and nothing is demonstrated."""

        def demonstrate(self):
            return ""

        async def step(self, text):
            return replace(await super().step(text), reward=1.0, done=True, success=True)

    with pytest.raises(TaskError, match="nothing to imitate"):
        await start(Easy, warm_start_steps=1)


async def test_recorded_demonstrations_are_imitated(start, caplog):
    env = ScriptedEnv()
    await env.reset(TASK)
    good = Demonstration(TASK, "", (env.demonstrate(),))
    bad = Demonstration(TASK, "", ("click('1')",))
    policy, count, steps = await start(demonstrations=[good, bad], warm_start_steps=3)
    assert (count, steps, policy.version) == (3, 3, 3)  # of two per step, one succeeds
    assert [record.message for record in caplog.records] == [
        "not imitated: click-word, seed 7: no success after 1 actions"
    ]
    with pytest.raises(TaskError, match="no demonstration of click-word succeeded: no success"):
        await start(demonstrations=[bad], warm_start_steps=1)


async def test_an_infrastructure_failure_is_not_a_bad_demonstration(start):
    with pytest.raises(EnvError, match=r"no demonstration could be played: .* is dead"):
        await start(lambda: ScriptedEnv(fail_at=1), warm_start_steps=1)


async def test_only_successful_demonstrations_are_imitated(start, monkeypatch):
    outcomes = iter([True, False])

    class Half(ScriptedEnv):
        async def reset(self, task, **options):
            self.works = next(outcomes)
            return await super().reset(task, **options)

        async def step(self, text):
            return await super().step(text if self.works else "noop()")

    imitated = []

    def make(episodes, world_size):
        imitated.extend(episodes)
        return demonstration_batch(episodes, world_size)

    monkeypatch.setattr(grpo.training.warm_start, "demonstration_batch", make)
    _, count, _ = await start(Half, warm_start_steps=1, max_turns=3)
    assert count == len(imitated) == 1
    assert imitated[0].success
