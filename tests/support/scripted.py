"""A whole training run in seconds: a tiny random model on a page of four words, no browser.

Everything is seeded: runs of one configuration end with bitwise equal adapters, however often
they were interrupted. Takes the options of `grpo train` and writes `adapter/` (`model/` with
`--train full`), `gradient.pt` (of the first update) and `metrics.jsonl` to the output folder.

    python -m tests.support.scripted --output runs/scripted --steps 20
    torchrun --nproc-per-node 2 -m tests.support.scripted --output runs/scripted --steps 20
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from envs.base import Env, Task
from envs.pool import EnvPool
from envs.scripted import ScriptedEnv
from grpo.arguments import read_config
from grpo.config import Config
from grpo.distributed import World
from grpo.generators.factory import open_generator
from grpo.model.loading import make_policy
from grpo.reporting.loggers import MetricsLog
from grpo.rollouts.agents import model_agent
from grpo.rollouts.rollout import Rollouts
from grpo.rollouts.task_sampler import TaskSampler
from grpo.shutdown import Shutdown, Stopped
from grpo.training.trainer import Trainer
from tests.support.models import TASK, make_llama, make_tokenizer

SETTINGS: dict[str, Any] = {
    "task": TASK.name,
    "group_size": 8,
    "groups_per_step": 2,
    "max_turns": 1,
    "max_new_tokens": 1,
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "beta": 0.05,  # so that every step has a gradient
    "eval_episodes": 0,
}


class OnePage(TaskSampler):
    """Draws the one page whose words the tokenizer knows."""

    def draw(
        self, step: int, count: int, attempt: int = 0, weights: Sequence[float] = ()
    ) -> list[Task]:
        """Return the page `count` times."""
        return [TASK] * count


async def run(
    config: Config,
    world: World,
    *,
    env: Callable[[], Env] = ScriptedEnv,
    on_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train, from the newest checkpoint if `config.resume` says so.

    Args:
        config: configuration of the run.
        world: the processes that train together.
        env: makes the environments.
        on_step: called with the number of steps done after each of them.

    Raises:
        Stopped: a signal ended the run.
    """
    policy = make_policy(config, make_llama(), make_tokenizer())
    with ThreadPoolExecutor(1) as executor:
        async with (
            Shutdown() as shutdown,
            open_generator(config, policy, executor) as generator,
        ):
            agent = model_agent(generator, policy.chat, temperature=config.temperature)
            pool = EnvPool(env, config.env_sessions)
            rollouts = Rollouts(pool, agent, config.max_turns, config.valid_action_bonus)
            trainer = Trainer(config, policy, generator, rollouts, executor, world, shutdown)
            one_page = OnePage([TASK.name])
            one_page.load_state(trainer.task_sampler.state())  # that of a checkpoint, perhaps
            trainer.task_sampler = one_page
            if world.is_main:
                log = MetricsLog(config.folder, keep_before_step=trainer.step + 1)
            async for step in trainer.train():
                if world.is_main:
                    log.log(step.step, step.metrics)
                    if step.step == 1:
                        gradient = [p.grad for p in policy.parameters()]
                        torch.save(gradient, config.folder / "gradient.pt")
                on_step(step.step)
            shutdown.raise_if_requested()
    if world.is_main:
        policy.save(config.folder / policy.weights_dirname)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and return the exit code."""
    defaults = [part for k, v in SETTINGS.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    given = sys.argv[1:] if argv is None else argv
    config = read_config([*defaults, *given], prog="scripted", description=str(__doc__))
    world = World()
    try:
        asyncio.run(run(config, world))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    world.close()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
