"""Imitation of demonstrations: an optional warm start, before anything is reinforced."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from envs.base import EnvError, TaskError
from envs.demonstrations import Demonstration
from envs.replay import Pool
from grpo.algorithm.batch import rows_from_completions
from grpo.distributed import World
from grpo.errors import ConfigError, one_line_reason
from grpo.model.policy import Policy
from grpo.rollouts.demonstrators import Demonstrator, Recorded, Scripted, Size
from grpo.shutdown import Shutdown
from grpo.training.held_out_loss import HeldOutLoss
from grpo.training.updater import Updater
from grpo.tree.token_tree import count_distinct
from grpo.types import Episode, TokenBatch

if TYPE_CHECKING:
    from grpo.config import Config

OnStep = Callable[[int, dict[str, float]], None]
"""`(updates done, metrics)`, see `grpo.training.metrics.IMITATION`."""

Result = TypeVar("Result")


def demonstration_batch(episodes: Sequence[Episode], world_size: int = 1) -> TokenBatch:
    """Lay out demonstrations so that their policy gradient is that of maximum likelihood.

    The gradient of the clipped surrogate at a ratio of 1 is A times that of log p. With A = 1 and
    tokens averaged over the batch it is the gradient of behavior cloning's loss.

    Args:
        episodes: what to imitate, all their turns.
        world_size: number of ranks whose batches are added up.
    """
    completions = [turn.completion for episode in episodes for turn in episode.turns]
    tokens = sum(len(completion.completion_ids) for completion in completions)
    ones = torch.ones(len(completions))
    return rows_from_completions(completions, ones, ones / (tokens * world_size))


class WarmStart:
    """Updates towards demonstrated episodes, with an optimizer of their own.

    Attributes:
        step: updates done.
        steps: updates in all.
        imitated: demonstrations that this rank has imitated, each as often as it did.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        pool: Pool,
        executor: Executor,
        world: World | None = None,
        shutdown: Shutdown | None = None,
        *,
        demonstrations: Sequence[Demonstration] = (),
        max_prompt_tokens: int = 0,
    ) -> None:
        """Decide what is imitated, and make the optimizer.

        Args:
            config: of the run.
            policy: the policy to train.
            pool: the environments.
            executor: one thread, which does all of torch's work.
            world: the processes that train together; None for this one alone.
            shutdown: when to stop after the running update; None for never.
            demonstrations: what to imitate, see `DemonstrationSampler`; none for the environment's
                scripted solver (see `envs.base.Demonstrator`), on training seeds, see `Scripted`.
            max_prompt_tokens: see `grpo.rollouts.agents.read_prompt`.

        Raises:
            ConfigError: the model's chat template cannot show a demonstration.
        """
        policy.chat.check_demonstrations()
        self.config, self.policy, self.executor = config, policy, executor
        self.world, self.shutdown = world or World.single(), shutdown or Shutdown()
        self.batch = (config.imitation_batch or config.groups_per_step) * self.world.world_size
        if demonstrations:
            recorded = Recorded(demonstrations, config, pool, policy.chat, max_prompt_tokens)
            of_epochs = config.imitation_epochs * len(recorded.imitated)
            self.steps = config.imitation_steps or math.ceil(of_epochs / self.batch)
            self._demonstrator: Demonstrator = recorded
        else:
            self.steps = config.imitation_steps
            count = self.steps * self.batch
            self._demonstrator = Scripted(count, config, pool, policy.chat, max_prompt_tokens)
        plan = repr((self.steps, self.batch, self._demonstrator.imitated))
        self._plan = hashlib.sha256(plan.encode()).hexdigest()
        # A separate optimizer, without what only makes sense for samples. (At a ratio of 1 every
        # `loss` has the same gradient.)
        self._updater = Updater(
            config.replace(
                beta=0.0,
                log_kl=False,
                importance="none",
                updates_per_batch=1,
                learning_rate=config.imitation_rate,
            ),
            policy,
            self.world,
            decay_over=self.steps or 1,
        )
        self.step = self.imitated = 0
        self._held_out = HeldOutLoss(self._updater, self.steps)

    async def run(
        self,
        on_step: OnStep = lambda step, metrics: None,
        save: Callable[[dict[str, Any]], object] = lambda state: None,
    ) -> None:
        """Imitate until the steps are over, or a signal arrives.

        Args:
            on_step: called after each update, and before the first one.
            save: called with `state` every `save_every` updates and at the end, also by an error.

        Raises:
            TaskError: no episode of a step was demonstrated to success.
            EnvError: the infrastructure lost all episodes of a step.
            TrainingError: the updates are not finite.
        """
        try:
            if self.step < self.steps:
                ranks = slice(self.world.rank, None, self.world.world_size)
                played, _ = await self._demonstrator.play_held_out(ranks)
                self._held_out.episodes = _solved(played)
            if not self.step:
                on_step(0, await self._in_executor(self._held_out.measure, 0))
            while not await self._is_stopped() and self.step < self.steps:
                episodes = await self._episodes()
                update = await self._in_executor(self._imitate, episodes)
                self.step += 1
                self.imitated += len(episodes)
                metrics = {
                    # The log-probabilities of what nobody sampled are 0: this gap is the loss.
                    "imitation/loss": update["sampling/logp_difference"],
                    "imitation/learning_rate": update["learning_rate"],
                    "imitation/grad_norm": update["grad_norm"],
                }
                metrics |= await self._in_executor(self._held_out.measure, self.step)
                on_step(self.step, metrics)
                if self.config.save_every and self.step % self.config.save_every == 0:
                    await self._in_executor(save, self.state())
        except Exception as error:
            if self.step:
                save(self.state())
            await self._in_executor(self.world.tell, error)
            raise
        await self._in_executor(save, self.state())

    def state(self) -> dict[str, Any]:
        """Return what the next update depends on, beside the policy."""
        return {
            "plan": self._plan,
            "step": self.step,
            "imitated": self.imitated,
            "held_out": self._held_out.state(),
            "demonstrator": self._demonstrator.state(),
            **(self._updater.state() if self.step < self.steps else {}),  # it is not needed again
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned.

        Raises:
            ConfigError: it is the state of other updates, or none.
        """
        if state.get("plan") != self._plan:
            raise ConfigError(
                "cannot resume the warm start: its demonstrations, or how many of them an update "
                "imitates over all ranks, have changed"
            )
        try:
            self.step, self.imitated = int(state["step"]), int(state["imitated"])
            self._held_out.load_state(state["held_out"])
            self._demonstrator.load_state(state["demonstrator"])
            if self.step < self.steps:
                self._updater.load_state(state)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"cannot resume the warm start: {one_line_reason(error)}") from error

    async def _episodes(self) -> list[Episode]:
        """Play this rank's demonstrations of the step; return those that succeeded."""
        share, rank = self.batch // self.world.world_size, self.world.rank
        mine = slice(share * rank, share * (rank + 1))
        played, error = await self._demonstrator.play(self.step, self.batch, mine)
        episodes = [episode for episode in played if episode]
        if not episodes:
            raise EnvError(f"no demonstration could be played: {error}")
        solved = _solved(played)
        if not solved:
            names = ", ".join(sorted({episode.task.name for episode in episodes}))
            why = f": {error}" if error else ""
            raise TaskError(f"nothing to imitate: no demonstration of {names} succeeded{why}")
        sizes = await self._in_executor(self.world.all_gather, [_size(each) for each in solved])
        self._demonstrator.observe([size for of_rank in sizes for size in of_rank])
        return solved

    async def _is_stopped(self) -> bool:
        """Tell whether any rank is to stop before the next update."""
        received = self.shutdown.received[:1]
        return self.shutdown.adopt(await self._in_executor(self.world.all_gather, received))

    def _imitate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Update towards episodes; call it on torch's thread."""
        return self._updater.update(demonstration_batch(episodes, self.world.world_size))

    async def _in_executor(self, function: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)


def _size(episode: Episode) -> Size:
    """Return what an update computes for an episode: its distinct tokens."""
    completions = [turn.completion for turn in episode.turns]
    rows = [[*each.prompt_ids, *each.completion_ids] for each in completions]
    return episode.task.name, count_distinct(rows)


def _solved(played: Sequence[Episode | None]) -> list[Episode]:
    """Return the episodes that succeeded by what can be imitated."""
    return [
        episode
        for episode in played
        if episode
        and episode.success
        and all(turn.completion.completion_ids for turn in episode.turns)
    ]
