"""Fixtures: tiny models, groups of episodes, a trainer."""

import resource
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.algorithm.batch import make_batch, reward_tensors
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.config import Config
from grpo.generators.local import LocalGenerator
from grpo.model.lora_policy import LoRAPolicy
from grpo.rollouts.agents import model_agent
from grpo.rollouts.rollout import Rollouts
from grpo.training.trainer import Trainer
from grpo.types import Completion, Episode, Group, Turn
from tests.support.models import TASK, make_model, make_tokenizer, round_weights, to_float64
from tests.support.scripted import OnePage


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def base_model():
    """A function that makes the model of a family without an adapter, the same each time."""

    def make(family="llama", dtype=torch.float64):
        model = make_model(family)
        return to_float64(model) if dtype == torch.float64 else round_weights(model, dtype)

    return make


@pytest.fixture
def perturb():
    """A function that adds noise to every parameter of a policy's adapter."""

    def add(policy, seed=1, std=0.2):
        random = torch.Generator().manual_seed(seed)
        for p in policy.parameters():
            noise = torch.empty(p.shape, dtype=p.dtype).normal_(std=std, generator=random)
            p.data += noise

    return add


@pytest.fixture
def make_policy(tokenizer, perturb):
    """A function that makes a tiny policy, by default in float64 and with a perturbed adapter."""

    def make(family="llama", *, double=True, start=False, **options):
        model = make_model(family)
        policy = LoRAPolicy(to_float64(model) if double else model, tokenizer, **options)
        if double:
            for p in policy.parameters():
                p.data = p.data.double()
        if not start:
            perturb(policy)
        return policy

    return make


def make_completion(prompt_ids, completion_ids):
    logprobs = (-1.0,) * len(completion_ids)
    return Completion(tuple(prompt_ids), tuple(completion_ids), logprobs, 0, "stop")


@pytest.fixture
def group_of():
    """A function that makes a group of episodes `(reward, turn, ...)`.

    A turn is `(prompt_ids, completion_ids[, reward, state])`.
    """

    def make(*episodes, task=TASK):
        return Group(
            task,
            tuple(
                Episode(
                    task,
                    tuple(Turn(make_completion(*turn[:2]), "", True, *turn[2:]) for turn in turns),
                    float(reward),
                    reward > 0,
                    "done",
                )
                for reward, *turns in episodes
            ),
        )

    return make


# The groups below have a prompt with equal completions, a row that is a prefix of another one, a
# prompt that shares two tokens with the first, and a prompt that shares none.
P, Q, R = [3, 4, 5, 6], [3, 4, 9, 2, 8], [7, 7]


@pytest.fixture
def groups(group_of):
    return [
        group_of((1, (P, [8, 9, 0])), (0, (P, [8, 9, 0])), (0, (P, [8])), (1, (P, [8, 2, 0]))),
        group_of((0.5, (Q, [10, 0])), (0, (Q, [10, 0]), ([*Q, 10], [11])), (0, (Q, [0]))),
        group_of((2, (R, [3, 4, 5, 6])), (0, (R, [9]))),
    ]


@pytest.fixture
def batch_of():
    """A function that makes the batch of some groups, with their advantages."""

    def make(groups, credit=None, *, scale="group", baseline="mean", **options):
        credit = credit or CreditRule()
        advantages = turn_advantages(
            *reward_tensors(groups), credit, scale=scale, baseline=baseline
        )
        return make_batch(groups, advantages, **options)

    return make


@pytest.fixture
def batch(groups, batch_of):
    return batch_of(groups)


@pytest.fixture
def row_by_row():
    """A function that returns log-probabilities and entropy [N, T] from the model's own logits."""

    def compute(model, batch, temperature=1.0):
        logprobs, entropy = [], []
        for ids, mask in zip(batch.rows(), batch.completion_mask, strict=True):
            logits = model(torch.tensor([ids])).logits[0, :-1] / temperature
            distribution = logits.log_softmax(-1)
            chosen = distribution.gather(1, torch.tensor(ids)[1:, None])[:, 0]
            padding = (1, len(mask) - len(ids))
            row = nn.functional.pad(chosen, padding)
            logprobs.append(torch.where(mask, row, 0.0))
            row = nn.functional.pad(-(distribution.exp() * distribution).sum(-1), padding)
            entropy.append(torch.where(mask, row, 0.0))
        return torch.stack(logprobs), torch.stack(entropy)

    return compute


@pytest.fixture
def gradient():
    """A function that returns the gradient of a scalar in a policy's parameters, as one vector."""

    def compute(policy, scalar):
        return torch.cat([g.flatten() for g in torch.autograd.grad(scalar, policy.parameters())])

    return compute


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def make_trainer(make_policy, executor, tmp_path):
    """A function that makes a trainer on the one page whose words the tokenizer knows.

    Its options are those of `Config`; `env` makes the environments, `size` of them at a time.
    """

    def make(env=ScriptedEnv, *, policy=None, size=8, world=None, shutdown=None, **options):
        settings = {
            "output": str(tmp_path / "run"),
            "task": TASK.name,
            "seed": 2,  # some of its first episodes succeed
            "group_size": 8,
            "groups_per_step": 2,
            "max_turns": 1,
            "max_new_tokens": 1,
            "learning_rate": 0.03,
            "warmup_steps": 0,
            "eval_episodes": 0,
        }
        config = Config(**(settings | options))
        policy = policy or make_policy(double=False, start=True)
        generator = LocalGenerator(policy, max_new_tokens=config.max_new_tokens, executor=executor)
        agent = model_agent(generator, policy.chat, temperature=config.temperature)
        rollouts = Rollouts(EnvPool(env, size), agent, config.max_turns, config.valid_action_bonus)
        trainer = Trainer(config, policy, generator, rollouts, executor, world, shutdown)
        trainer.task_sampler = OnePage([TASK.name])
        return trainer

    return make


@pytest.fixture(scope="session")
def bundled_path():
    from grpo.model.bundled import bundled_model_path

    return bundled_model_path()


@pytest.fixture
def full_disk():
    """A function that limits the size of the files this process writes: bytes, -1 for no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
