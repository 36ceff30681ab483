"""Whole programs: evaluate, train, evaluate again; or evaluate alone.

Reporting is imported when a program runs, so that `grpo.train` is available at once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.demonstrations import Demonstration
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.files import locked, set_aside, writable
from grpo.model.device import choose_device, choose_dtype, dtype_name
from grpo.reporting.gallery import ending
from grpo.rollouts.agents import Agent, blind_agent, random_agent
from grpo.rollouts.demonstrations import load_demonstrations
from grpo.rollouts.rollout import Rollouts
from grpo.runtime import EnvSource, Runtime, open_runtime
from grpo.shutdown import Shutdown
from grpo.training.trainer import Trainer
from grpo.training.warm_start import WarmStart

if TYPE_CHECKING:
    from grpo.config import Config
    from grpo.reporting.report import TrainingReport


@dataclass(frozen=True)
class RunResult:
    """What a program leaves behind.

    Attributes:
        summary: success rates of every agent, over all tasks and per task; for a training run
            also steps, episodes and seconds.
        folder: the run's folder.
        weights: folder of the trained adapter or model; None after an evaluation.
    """

    summary: dict[str, Any]
    folder: Path
    weights: Path | None = None

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of every training step, as `metrics.jsonl` holds them."""
        from grpo.reporting.loggers import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")


def train(
    config: Config, env: EnvSource, *, baselines: Mapping[str, Agent] | None = None
) -> RunResult:
    """Train a policy on an environment, and evaluate it before and after.

    Blocks until the run is over, even in a notebook cell. An interrupt finishes the running
    step, saves, and raises `Stopped`.

    Args:
        config: the run's options.
        env: a class of environments, a function that makes one, or a pool of them, which is
            closed at the end.
        baselines: agents to evaluate beside the random one, e.g. an oracle.

    Raises:
        ConfigError, TaskError: the configuration asks for something that cannot be done.
        EnvError, GeneratorError, TrainingError, OSError: the infrastructure failed; what was
            learned is saved.
        Stopped: a signal ended the run.
    """
    world, shutdown = World(), Shutdown()
    program = run_training(config, env, baselines=baselines, world=world, shutdown=shutdown)
    return wait_for(program, world, shutdown)


def evaluate(
    config: Config, env: EnvSource, *, baselines: Mapping[str, Agent] | None = None
) -> RunResult:
    """Evaluate the policy that a configuration names on held-out seeds.

    Args and errors are those of `train`.
    """
    world, shutdown = World(), Shutdown()
    program = run_evaluation(config, env, baselines=baselines, world=world, shutdown=shutdown)
    return wait_for(program, world, shutdown)


async def run_training(
    config: Config,
    env: EnvSource,
    *,
    baselines: Mapping[str, Agent] | None = None,
    world: World | None = None,
    shutdown: Shutdown | None = None,
) -> RunResult:
    """Do what `train` does, as a coroutine of the caller's event loop."""
    from grpo.reporting.dashboards import check_dashboard
    from grpo.reporting.hub import check_access

    _check_arguments(config, env, baselines)
    world = world or World.single()
    check_dashboard(config)
    if config.push_to_hub and world.is_main:
        check_access(config.push_to_hub)
    with locked(config.folder) if world.is_main else nullcontext(), ending(config.folder, world):
        return await _run_training(config, env, baselines or {}, world, shutdown)


async def _run_training(
    config: Config,
    env: EnvSource,
    baselines: Mapping[str, Agent],
    world: World,
    shutdown: Shutdown | None,
) -> RunResult:
    from grpo.reporting.progress import Bars, step_line
    from grpo.reporting.report import TrainingReport

    started = time.monotonic()
    config = _with_dtype(config, world)
    demonstrations = load_demonstrations(config) if config.demonstrations else ()
    bars = Bars.for_world(world)
    loading = bars.status(f"{config.task_in_words}  {_loading(config)}")
    async with open_runtime(config, env, world, shutdown, loading) as runtime:
        policy, decodings = runtime.policy, runtime.decodings
        if config.imitation_length:
            policy.chat.check_demonstrations()
        rollouts = Rollouts(
            runtime.pool, decodings["sampled"], config.max_turns, config.valid_action_bonus
        )
        parts = (policy, runtime.generator, rollouts, runtime.executor, world, runtime.shutdown)
        trainer = await runtime.in_executor(Trainer, config, *parts)
        if world.is_main and not trainer.resumed and (earlier := set_aside(config.folder)):
            bars.console.print(
                f"the earlier run in {config.folder} is now in {earlier}", soft_wrap=True
            )
        trainer.saver.begin()
        report = TrainingReport(runtime, bars, trainer)
        if trainer.resumed:
            bars.console.print(f"resuming from step {trainer.step}")
        else:
            with report.timed("eval"):
                # Side by side: while the model samples, the browsers serve the others.
                await report.evaluate(_references(baselines) | {"untrained": decodings})
                await report.record_episodes("untrained", "before")
        imitated_before = trainer.seconds["imitation"]  # 0, except in a resumed run
        # Before version 0.3 a checkpoint of step 0 was written after the warm start, without its
        # state.
        if config.imitation_length and not trainer.step:
            if trainer.warm_start or not trainer.resumed:
                await _warm_start(runtime, trainer, report, demonstrations)
            if "warm_started" not in report.summary:
                with report.timed("eval"):
                    await report.evaluate({"warm_started": decodings})
        spent = report.seconds["eval"] + trainer.seconds["imitation"] - imitated_before
        report.seconds["setup"] = time.monotonic() - started - spent

        per_step = config.groups_per_step * config.group_size
        with (
            bars.bar("train: steps", config.steps - trainer.step) as on_step,
            bars.bar("  rollouts of the step", per_step) as on_episode,
        ):
            steps = trainer.train(on_episode)
            try:
                async with aclosing(steps):
                    async for step in steps:
                        await report.log(step)
                        bars.console.print(step_line(step.step, step.metrics), soft_wrap=True)
                        on_step()
                        on_episode.reset()
            except OSError as error:
                if not trainer.is_finished:
                    raise
                report.failures.append(error)  # of the last files: the rest is still done
        runtime.shutdown.raise_if_requested()  # the step is done, its checkpoint written

        with report.timed("eval"):
            if config.blind:
                blind = {name: blind_agent(agent) for name, agent in decodings.items()}
                with report.part("the blind evaluation"):
                    await report.evaluate({"blind": blind})
            with report.part("the evaluation"):
                await report.evaluate({"trained": decodings})
                await report.record_episodes("trained", "after")
    report.finish(trainer)
    return RunResult(report.summary, config.folder, config.folder / policy.weights_dirname)


async def _warm_start(
    runtime: Runtime,
    trainer: Trainer,
    report: TrainingReport,
    demonstrations: Sequence[Demonstration],
) -> None:
    """Imitate demonstrations, from where a checkpoint of the run has left it."""
    warm_start = WarmStart(
        runtime.config,
        runtime.policy,
        runtime.pool,
        runtime.executor,
        runtime.world,
        runtime.shutdown,
        demonstrations=demonstrations,
        max_prompt_tokens=runtime.max_prompt_tokens,
    )
    if trainer.warm_start:
        await runtime.in_executor(warm_start.load_state, trainer.warm_start)
        report.console.print(f"resuming the warm start from update {warm_start.step}")

    started, before = time.monotonic(), trainer.seconds["imitation"]

    def save(state: dict[str, Any]) -> None:
        trainer.seconds["imitation"] = before + time.monotonic() - started
        trainer.warm_start = state
        trainer.saver.save(0, trainer.state, anew=True)

    with (
        runtime.shutdown.deferred(),
        report.imitation(warm_start.step, warm_start.steps) as on_step,
    ):
        await warm_start.run(on_step, save)
    runtime.shutdown.raise_if_requested()  # the update is done, its checkpoint written
    report.console.print(f"imitated {warm_start.imitated} demonstrations")
    await runtime.generator.sync()


async def run_evaluation(
    config: Config,
    env: EnvSource,
    *,
    baselines: Mapping[str, Agent] | None = None,
    world: World | None = None,
    shutdown: Shutdown | None = None,
) -> RunResult:
    """Do what `evaluate` does, as a coroutine of the caller's event loop."""
    from grpo.reporting.progress import Bars
    from grpo.reporting.report import EvaluationReport

    _check_arguments(config, env, baselines)
    if not config.eval_episodes:
        raise ConfigError("eval_episodes must be at least 1 to evaluate, got 0")
    started, world = time.monotonic(), world or World.single()
    bars = Bars.for_world(world)
    loading = bars.status(f"{config.task_in_words}  {_loading(config)}")
    with writable(config.folder) if world.is_main else nullcontext(), ending(config.folder, world):
        async with open_runtime(config, env, world, shutdown, loading) as runtime:
            report = EvaluationReport(runtime, bars)
            report.seconds["setup"] = time.monotonic() - started
            agents = _references(baselines or {})
            if config.blind:
                agents["blind"] = {name: blind_agent(a) for name, a in runtime.decodings.items()}
            agents["policy"] = runtime.decodings
            for name, decodings in agents.items():
                with report.timed(name):
                    await report.evaluate({name: decodings})
            with report.timed("media"):
                await report.record_episodes("policy", "evaluation")
    report.finish()
    return RunResult(report.summary, config.folder)


def _references(baselines: Mapping[str, Agent]) -> dict[str, Mapping[str, Agent]]:
    """Return the random agent and the baselines as `Report.evaluate` takes them."""
    agents = {"random": random_agent, **baselines}
    return {name: {"sampled": agent} for name, agent in agents.items()}


def _with_dtype(config: Config, world: World) -> Config:
    """Replace dtype "auto" by a resumed run's dtype, or by what the device is fastest in."""
    if config.dtype != "auto":
        return config
    saved = config.folder / "config.yaml"
    if config.resume and saved.is_file():
        return config.replace(dtype=type(config).from_yaml(saved).dtype)
    name = dtype_name(choose_dtype("auto", choose_device(config.device)))
    return config.replace(dtype=world.all_gather(name)[0])


def _loading(config: Config) -> str:
    also = {
        "local": "",
        "vllm": ", starting vLLM",
        "vllm-server": f", connecting to vLLM at {', '.join(config.vllm_url)}",
    }
    return "loading the model" + also[config.backend]


def _check_arguments(config: object, env: object, baselines: object) -> None:
    from grpo.config import Config

    if not isinstance(config, Config):
        raise TypeError(f"config must be a grpo.Config, got {config!r:.80}")
    if not isinstance(env, EnvPool) and not callable(env):
        raise TypeError(f"env must be a pool, a class or a function, got {env!r:.80}")
    if not isinstance(baselines, Mapping | None):
        raise TypeError(f"baselines must map names to agents, got {baselines!r:.80}")
