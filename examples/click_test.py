"""The main job: a small language model learns to click in a real browser.

    python examples/click_test.py                       # the bundled model on click-test
    python examples/click_test.py --task click-button   # another MiniWoB task
    python examples/click_test.py --model LiquidAI/LFM2-350M --max-steps 10

Evaluates, trains, evaluates again, and leaves in the run's folder: the adapter, TensorBoard
events, metrics.jsonl, curves.png, screenshots of an episode before and after, summary.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, installed or not

from rich.console import Console

from envs.base import EnvError, Task, TaskError
from envs.browsergym import BrowserGymEnv
from envs.pool import EnvPool
from envs.server.local import LocalServer
from grpo.config import Config, ConfigError
from grpo.display import Bars, plot_curves, sparkline, step_line, success_table, time_line
from grpo.evaluate import evaluate, random_policy, record_episode
from grpo.generators.local import LocalGenerator
from grpo.loggers import MetricsLog, read_metrics
from grpo.models import load_policy
from grpo.rollout import Act, Rollouts, gather, sampled_by
from grpo.trainer import HELD_OUT, Trainer

CONFIGS = Path(__file__).parent / "configs"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if what was asked for cannot be done, 1 if the browsers fail."""
    try:
        config = Config.from_command_line(argv, description=str(__doc__), configs=CONFIGS)
        asyncio.run(run(config, Console(highlight=False)))
    except (ConfigError, TaskError, EnvError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, EnvError) else 2
    return 0


async def run(config: Config, console: Console) -> dict[str, Any]:
    """Evaluate, train, evaluate again; returns what `summary.json` holds."""
    started = time.monotonic()
    console.print(f"[bold]{config.task}[/]  loading the model, starting the browsers")
    policy = load_policy(config)
    # One thread for all of torch's work: the event loop stays free for the browsers.
    executor = ThreadPoolExecutor(1, thread_name_prefix="torch")
    generator = LocalGenerator(
        policy,
        max_new_tokens=config.max_new_tokens,
        executor=executor,
        cache_tokens=config.cache_tokens,
        threads=config.sampling_threads or None,
    )
    sampled, greedy = (
        sampled_by(generator, policy.tokenizer, temperature=t) for t in (config.temperature, 0.0)
    )
    held_out = [Task(config.task, HELD_OUT + i) for i in range(config.eval_episodes)]
    bars = Bars(console)

    async with browsers(config) as sessions:

        async def success(who: str, act: Act, *, hide_page: bool = False) -> dict[str, Any]:
            with bars.bar(f"evaluate {who}", len(held_out)) as advance:
                async with sessions(hide_page) as pool:
                    rollouts = Rollouts(pool, act, config.max_steps, on_episode=advance)
                    result = await evaluate(rollouts, held_out, seed=config.seed)
            console.print(f"{who:<20} success {result.success:.2f} of {result.n}")
            return asdict(result)

        async def both(who: str, **how: Any) -> dict[str, Any]:
            # Side by side: they read the same pages, which the generator computes once.
            ways = {"sampled": sampled, "greedy": greedy}
            rates = await gather(success(f"{who}, {k}", act, **how) for k, act in ways.items())
            return dict(zip(ways, rates, strict=True))

        async def pictures(when: str) -> None:
            async with sessions() as pool:
                rollouts = Rollouts(pool, sampled, config.max_steps)
                folder = config.folder / "screenshots" / when
                await record_episode(rollouts, held_out[0], folder, seed=config.seed)

        async with sessions() as pool:
            rollouts = Rollouts(pool, sampled, config.max_steps, config.valid_action_bonus)
            trainer = Trainer(config, policy, generator, rollouts, executor)
            log = MetricsLog(config.folder, keep_before_step=trainer.step + 1)
            (config.folder / "config.yaml").write_text(config.to_yaml())
            summary: dict[str, Any] = {"task": config.task, "model": policy.name}
            seconds = {"setup": time.monotonic() - started, "eval": 0.0}

            results = config.folder / "summary.json"
            if config.resume and results.is_file():
                summary = json.loads(results.read_text()) | summary
            elif config.eval_episodes and not config.resume:
                started = time.monotonic()
                chance = await success("random", random_policy)
                summary["random"] = {"sampled": chance, "greedy": chance}
                summary["blind_untrained"] = await both("blind", hide_page=True)
                summary["untrained"] = await both("untrained")
                await pictures("before")
                seconds["eval"] += time.monotonic() - started
                results.write_text(json.dumps(summary, indent=2) + "\n")

            per_step = config.groups_per_step * config.group_size
            with (
                bars.bar("train: steps", config.steps - trainer.step) as advance,
                bars.bar("  rollouts of the step", per_step) as rollouts.on_episode,
            ):
                async for metrics in trainer.train():
                    log.log(trainer.step, metrics)
                    console.print(step_line(trainer.step, metrics), soft_wrap=True)
                    advance()
                    rollouts.on_episode.reset()
            log.close()

            if config.eval_episodes:
                started = time.monotonic()
                summary["blind"] = await both("blind", hide_page=True)
                summary["trained"] = await both("trained")
                await pictures("after")
                seconds["eval"] += time.monotonic() - started
    executor.shutdown()
    policy.save(config.folder / "adapter")
    summary |= {"steps": trainer.step, "episodes": trainer.episodes}
    summary["seconds"] = {k: round(v, 1) for k, v in (seconds | trainer.seconds).items()}
    results.write_text(json.dumps(summary, indent=2) + "\n")
    show(summary, config, console)
    return summary


@asynccontextmanager
async def browsers(config: Config) -> AsyncIterator[Any]:
    """A function that opens a pool of browser sessions, on a server started here or not."""
    # Two evaluations run side by side while training's sessions idle.
    server = LocalServer(config.env_workers, max_sessions=3 * config.env_sessions)

    @asynccontextmanager
    async def sessions(hide_page: bool = False) -> AsyncIterator[EnvPool]:
        async def session() -> BrowserGymEnv:
            url = config.env_url or await server.ensure()
            return BrowserGymEnv(url, deadline_s=config.env_deadline, hide_page=hide_page)

        pool = EnvPool(session, config.env_sessions)
        try:
            yield pool
        finally:
            await pool.close()

    try:
        yield sessions
    finally:
        await asyncio.to_thread(server.close)


def show(summary: dict[str, Any], config: Config, console: Console) -> None:
    """Print the summary and draw the curves."""
    folder = config.folder
    steps = read_metrics(folder / "metrics.jsonl")
    title = f"{config.task}: {summary['steps']} steps, {summary['episodes']} episodes"
    plot_curves(steps, folder / "curves.png", title=title)
    console.print(f"\nsuccess while training  {sparkline(steps)}\n", soft_wrap=True)
    if config.eval_episodes:
        console.print(success_table(summary))
    console.print(time_line(summary), soft_wrap=True)
    console.print(f"\n{folder}/  adapter, curves.png, screenshots, metrics.jsonl, summary.json")
    console.print(f"tensorboard --logdir {folder}/tensorboard")


if __name__ == "__main__":
    sys.exit(main())
