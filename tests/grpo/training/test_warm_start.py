from types import SimpleNamespace

import pytest
import torch

import grpo.training.warm_start
from envs.base import EnvError, Task, TaskError
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.algorithm.batch import sort_batch
from grpo.config import Config
from grpo.distributed import World
from grpo.rollouts.evaluation import Success, evaluate
from grpo.rollouts.rollout import Rollouts
from grpo.training.updater import Updater
from grpo.training.warm_start import imitate, imitation_batch, oracle_agent
from tests.grpo.conftest import P, Q, R
from tests.support.scripted import TASK, OnePage


@pytest.mark.parametrize("ranks", [1, 2])
def test_its_gradient_is_that_of_maximum_likelihood(
    make_policy, group_of, row_by_row, gradient, ranks
):
    policy = make_policy()
    one, other = group_of(
        (1, (P, [8, 9, 0]), ([*P, 8], [2, 0])), (1, (Q, [10, 0]), (R, [3, 4, 5, 6]))
    ).episodes
    batch = sort_batch(imitation_batch([one, other], ranks))
    Updater(Config(), policy, World.single()).accumulate(batch)
    ours = torch.cat([p.grad.flatten() for p in policy.parameters()])
    logprobs, _ = row_by_row(policy.model, batch)
    likelihood = logprobs.sum() / batch.completion_mask.sum()
    theirs = gradient(policy, -likelihood / ranks)
    assert theirs.norm() > 1e-3
    # The weights of a batch are float32: 1 over the number of tokens is rounded.
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_an_episode_alone_is_the_average_of_itself(group_of):
    (episode, _) = group_of((1, (P, [8, 9, 0])), (1, (Q, [8]))).episodes
    batch = imitation_batch([episode])
    assert batch.advantages.tolist() == [1, 1]
    assert batch.token_weights.sum().item() == pytest.approx(1)


async def test_the_oracle_solves_what_is_demonstrated():
    tasks = [Task(name, seed) for seed in range(5) for name in ("click-word", "click-two-words")]
    play = Rollouts(EnvPool(ScriptedEnv, 4), oracle_agent(), 2)
    outcomes = (await evaluate({"oracle": play}, tasks))["oracle"]
    assert Success.of(outcomes).solved == 10
    assert {(outcome.task.name, outcome.steps) for outcome in outcomes} == {
        ("click-word", 1),
        ("click-two-words", 2),
    }


@pytest.fixture
def start(make_policy, executor, monkeypatch):
    """A function: imitate on the one page whose words the tokenizer knows."""
    monkeypatch.setattr(grpo.training.warm_start, "TaskSampler", OnePage)

    async def run(env=ScriptedEnv, task=TASK.name, **options):
        config = Config(task=task, learning_rate=0.03, warmup_steps=0, max_new_tokens=1,
                        groups_per_step=2, **options)  # fmt: skip
        policy = make_policy(double=False, start=True)
        steps = []
        parts = SimpleNamespace(
            config=config,
            policy=policy,
            pool=EnvPool(env, 4),
            executor=executor,
            ranks=World.single(),
            max_prompt_tokens=0,
        )
        count = await imitate(parts, lambda: steps.append(1))
        return policy, count, len(steps)

    return run


async def test_it_learns_what_is_demonstrated(start):
    policy, count, steps = await start(warm_start_steps=12, loss="gspo", beta=0.1)
    assert (count, steps, policy.version) == (24, 12, 12)
    observation = await ScriptedEnv().reset(TASK)
    prompt = policy.tokenizer.apply_chat_template(
        list(observation.messages), add_generation_prompt=True
    )["input_ids"]
    tokenizer = policy.tokenizer
    answer = tokenizer.encode(observation.demonstration, add_special_tokens=False)
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
    said = logits.softmax(-1)[range(len(answer) + 1), [*answer, tokenizer.eos_token_id]]
    assert (said > 0.9).all()


async def test_what_fails_is_not_imitated(start):
    class Wrong(ScriptedEnv):
        async def step(self, text):
            return await super().step("click('1')")

    with pytest.raises(TaskError, match="nothing to imitate: no solver of click-word succeeded"):
        await start(Wrong, warm_start_steps=1)


async def test_a_broken_machinery_is_no_bad_demonstration(start):
    with pytest.raises(EnvError, match=r"no demonstration could be played: .* is dead"):
        await start(lambda: ScriptedEnv(fail_at=1), warm_start_steps=1)


async def test_demonstrations_of_which_some_fail(start, monkeypatch):
    outcomes = iter([True, False])

    class Half(ScriptedEnv):
        async def reset(self, task, **how):
            self.works = next(outcomes)
            return await super().reset(task, **how)

        async def step(self, text):
            return await super().step(text if self.works else "noop()")

    imitated = []
    monkeypatch.setattr(
        grpo.training.warm_start, "imitation_batch",
        lambda episodes, ranks: imitated.extend(episodes) or imitation_batch(episodes, ranks),
    )  # fmt: skip
    _, count, _ = await start(Half, warm_start_steps=1, max_turns=3)
    assert count == len(imitated) == 1
    assert imitated[0].success
