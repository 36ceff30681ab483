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
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout, installed or not

from rich.console import Console

from envs.base import EnvError, Task, TaskError
from envs.sessions import browser_sessions
from grpo.config import Config, ConfigError
from grpo.display import Bars, plot_curves, sparkline, step_line, success_table, time_line
from grpo.evaluate import Success, evaluate, random_policy, record_episode
from grpo.generators import open_generator
from grpo.generators.base import GeneratorError
from grpo.loggers import MetricsLog, read_metrics
from grpo.models import load_policy
from grpo.ranks import Ranks
from grpo.rollout import Act, Rollouts, gather, sampled_by
from grpo.stopping import OrderlyStop, Stopped
from grpo.tasks import HELD_OUT
from grpo.trainer import Trainer
from grpo.update import TrainingError

CONFIGS = Path(__file__).parent / "configs"
FAILURES = (EnvError, GeneratorError, TrainingError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run.

    Returns:
        0; 2 if what was asked for cannot be done, 1 if the machinery fails (what was learned is
        saved), 128 and the signal's number if one ended it.
    """
    try:
        config = Config.from_command_line(argv, description=str(__doc__), configs=CONFIGS)
        ranks = Ranks()
        asyncio.run(run(config, ranks, Console(highlight=False, quiet=not ranks.leads)))
        ranks.close()
    except Stopped as stopped:
        print(f"{stopped}; ARGS=--resume goes on", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:  # while the model was loading: there is nothing to save
        return 130
    except (ConfigError, TaskError, *FAILURES) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FAILURES) else 2
    return 0


async def run(config: Config, ranks: Ranks, console: Console) -> dict[str, Any]:
    """Evaluate, train, evaluate again; returns what `summary.json` holds."""
    started = time.monotonic()
    console.print(f"[bold]{config.task}[/]  loading the model, starting the browsers")
    policy = load_policy(config)
    # One thread for all of torch's work: the event loop stays free for the browsers.
    executor = ThreadPoolExecutor(1, thread_name_prefix="torch")
    async with (
        OrderlyStop() as stop,
        open_generator(config, policy, executor, ranks) as generator,
        browser_sessions(
            config.env_urls,
            size=config.env_sessions,
            workers=config.env_workers,
            deadline_s=config.env_deadline,
            first=ranks.rank,
        ) as sessions,
        sessions() as pool,
    ):
        limit = policy.max_length - config.max_new_tokens
        sampled, greedy = (
            sampled_by(
                generator,
                policy.tokenizer,
                temperature=temperature,
                max_prompt_tokens=min(limit, config.max_prompt_tokens or limit),
            )
            for temperature in (config.temperature, 0.0)
        )
        rollouts = Rollouts(pool, sampled, config.max_steps, config.valid_action_bonus)
        trainer = Trainer(config, policy, generator, rollouts, executor, ranks)
        stop.ask = trainer.stop
        held_out = [Task(config.task, HELD_OUT + i) for i in range(config.eval_episodes)]
        bars = Bars(console)

        async def play(who: str, act: Act, *, hide_page: bool = False) -> Success:
            """This rank's share of the held-out seeds."""
            tasks = held_out[ranks.rank :: ranks.size]
            with bars.bar(f"evaluate {who}", len(tasks)) as advance:
                async with sessions(hide_page=hide_page) as pool:
                    rollouts = Rollouts(pool, act, config.max_steps, on_episode=advance)
                    return await evaluate(rollouts, tasks, seed=config.seed)

        async def success(who: str, ways: dict[str, Act], **how: Any) -> dict[str, Any]:
            # Side by side: they read the same pages, which the generator computes once.
            own = await gather(play(f"{who}, {way}", act, **how) for way, act in ways.items())
            everyone = await trainer.in_executor(ranks.gather, own)
            rates = dict(zip(ways, map(Success.total, zip(*everyone, strict=True)), strict=True))
            for way, rate in rates.items():
                console.print(f"{f'{who}, {way}':<20} success {rate.success:.2f} of {rate.n}")
            return {way: asdict(rate) for way, rate in rates.items()}

        async def pictures(when: str) -> None:
            if ranks.leads:
                async with sessions() as pool:
                    rollouts = Rollouts(pool, sampled, config.max_steps)
                    folder = config.folder / "screenshots" / when
                    await record_episode(rollouts, held_out[0], folder, seed=config.seed)

        both = {"sampled": sampled, "greedy": greedy}
        record = Record(config, ranks.leads, trainer.step)
        summary: dict[str, Any] = {"task": config.task, "model": policy.name}
        seconds = {"setup": time.monotonic() - started, "eval": 0.0}
        if trainer.step:
            console.print(f"going on from step {trainer.step}")
            summary = record.summary() | summary
        elif config.eval_episodes:
            started = time.monotonic()
            chance = await success("random", {"sampled": random_policy})
            summary["random"] = {"sampled": chance["sampled"], "greedy": chance["sampled"]}
            summary["blind_untrained"] = await success("blind", both, hide_page=True)
            summary["untrained"] = await success("untrained", both)
            await pictures("before")
            seconds["eval"] += time.monotonic() - started
            record.write(summary)

        per_step = config.groups_per_step * config.group_size
        with (
            bars.bar("train: steps", config.steps - trainer.step) as advance,
            bars.bar("  rollouts of the step", per_step) as rollouts.on_episode,
        ):
            async for metrics in trainer.train():
                record.log(trainer.step, metrics)
                console.print(step_line(trainer.step, metrics), soft_wrap=True)
                advance()
                rollouts.on_episode.reset()
        record.close()
        if stop.received:
            raise Stopped(stop.received[0])  # the step is done, its checkpoint written

        if config.eval_episodes:
            started = time.monotonic()
            summary["blind"] = await success("blind", both, hide_page=True)
            summary["trained"] = await success("trained", both)
            await pictures("after")
            seconds["eval"] += time.monotonic() - started
    executor.shutdown()
    summary |= {"steps": trainer.step, "episodes": trainer.episodes}
    summary["seconds"] = {k: round(v, 1) for k, v in (seconds | trainer.seconds).items()}
    if ranks.leads:
        policy.save(config.folder / "adapter")
        record.write(summary)
        show(summary, config, console)
    return summary


class Record:
    """What the leading rank writes into the run's folder; the others write nothing."""

    def __init__(self, config: Config, leads: bool, step: int) -> None:
        self._path = config.folder / "summary.json"
        self._log = MetricsLog(config.folder, keep_before_step=step + 1) if leads else None
        if leads:
            (config.folder / "config.yaml").write_text(config.to_yaml())

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append a step."""
        if self._log is not None:
            self._log.log(step, metrics)

    def close(self) -> None:
        """Close the log of the steps."""
        if self._log is not None:
            self._log.close()

    def summary(self) -> dict[str, Any]:
        """What an earlier part of the run wrote."""
        return json.loads(self._path.read_text()) if self._path.is_file() else {}

    def write(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        if self._log is not None:
            self._path.write_text(json.dumps(summary, indent=2) + "\n")


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
    code = main()
    sys.stdout.flush()
    if code > 128:
        os._exit(code)  # at once: torch's thread may be in an update that nobody waits for
    sys.exit(code)
