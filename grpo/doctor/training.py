"""A check that a short training raises the reward: a tiny model on a page of four words."""

from __future__ import annotations

from envs.base import Observation, Task
from envs.pool import EnvPool
from grpo.algorithm.batch import make_batch, reward_tensors
from grpo.algorithm.credit import CreditRule, turn_advantages
from grpo.config import Config
from grpo.distributed import World
from grpo.doctor.context import Context, Failed
from grpo.generators.local import LocalGenerator
from grpo.model.loading import make_policy
from grpo.model.policy import Policy
from grpo.model.tiny import make_llama, make_tokenizer
from grpo.rollouts.agents import model_agent
from grpo.rollouts.rollout import Rollouts
from grpo.training.updater import Updater
from grpo.types import Group

PAGE = Task("click-word", 7)
STEPS, GROUPS, GROUP_SIZE = 12, 2, 16
LEAST_RISE = 0.3
"""Of the mean reward, from the first step to the last ones."""


async def training(context: Context) -> str:
    """Train a tiny model on one page by rollouts, generator and update as in any run."""
    async with EnvPool(context.scripted, GROUPS * GROUP_SIZE) as pool:
        async with pool.lease() as env:
            page = await env.reset(PAGE)
        config = Config(
            device=context.device,
            dtype="float32",  # so that only what is wrong can keep the reward from rising
            max_turns=1,
            max_new_tokens=1,
            learning_rate=0.02,
            warmup_steps=0,
        )
        policy = await context.run(_tiny_policy, config, page)
        generator = LocalGenerator(policy, max_new_tokens=1, executor=context.executor)
        agent = model_agent(generator, policy.chat, temperature=config.temperature)
        rollouts, updater = Rollouts(pool, agent, 1), Updater(config, policy, World.single())
        rewards: list[float] = []
        for step in range(STEPS):
            groups = await rollouts.collect([PAGE] * GROUPS, GROUP_SIZE, [0, step])
            played = [episode.reward for group in groups for episode in group.episodes]
            rewards.append(sum(played) / len(played))
            await context.run(_update, updater, groups)
            await generator.sync()
    before, after = rewards[0], sum(rewards[-3:]) / 3
    context.measured |= {"reward_before": before, "reward_after": after}
    found = (
        f"the mean reward of a tiny model went from {before:.2f} to {after:.2f} in {STEPS} steps"
    )
    if not after >= before + LEAST_RISE:
        raise Failed(f"{found}, expected a rise of at least {LEAST_RISE}: report it")
    return found


def _update(updater: Updater, groups: list[Group]) -> None:
    """Improve the policy by a step's groups, as `grpo.training.trainer` does."""
    advantages = turn_advantages(*reward_tensors(groups), CreditRule())
    batch = make_batch(groups, advantages, drop_zero_advantages=True)
    if batch is not None:
        updater.update(batch)


def _tiny_policy(config: Config, page: Observation) -> Policy:
    """Make a model of two layers whose tokens are the words of a page and its actions."""
    text = " ".join(message["content"] for message in page.messages)
    words = ["<eos>", "<unk>", *page.actions, *sorted(set(text.split()) - set(page.actions))][:24]
    model = make_llama(vocab_size=len(words)).to(config.device)
    return make_policy(config, model, make_tokenizer(words))
