"""The program behind `grpo demos import`: other programs' traces, kept where they succeed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from envs.base import Task
from envs.demonstrations import Demonstration, append_demonstration
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.demos.check import OpenPool
from grpo.demos.options import Import
from grpo.distributed import World
from grpo.errors import ConfigError, one_line_reason
from grpo.reporting.progress import Bars, count
from grpo.rollouts.demonstrations import read_existing, replay
from grpo.rollouts.gather import gather
from grpo.rollouts.task_sampler import HELD_OUT
from grpo.safe_output import one_line
from grpo.shutdown import Shutdown

ReadTrace = Callable[[Path], Demonstration]
"""Reads the folder of an episode; raises ValueError, in one line, if it has no counterpart."""

MARK = "exp_args.pkl"
"""A folder with this file is an episode's."""


def import_traces(options: Import, read: ReadTrace, open_pool: OpenPool) -> Counter[str]:
    """Replay recorded episodes, and add those that the environment calls a success to a file.

    Args:
        options: the traces, and the file.
        read: reads one of them.
        open_pool: makes the environments of a configuration.

    Returns:
        How many demonstrations were added, by task.

    Raises:
        ConfigError: there are no traces, or the file cannot be read.
        TaskError: the environment does not have one of the tasks.
        EnvError, OSError: the infrastructure failed; what was kept is in the file.
        Stopped: a signal ended the program; what was kept is in the file.
    """
    shutdown = Shutdown()
    return wait_for(_import(options, read, open_pool, shutdown), World.single(), shutdown)


async def _import(
    options: Import, read: ReadTrace, open_pool: OpenPool, shutdown: Shutdown
) -> Counter[str]:
    folders = sorted(path.parent for path in Path(options.traces).rglob(MARK))
    if not folders:
        raise ConfigError(f"expected folders with {MARK} in {options.traces}, got none")
    has = {(each.task, each.actions) for each in read_existing(options.output)}
    left_out, found = Counter[str](), dict[tuple[Task, tuple[str, ...]], Demonstration]()
    for folder in folders:
        try:
            trace = read(folder)
            if trace.task.seed >= HELD_OUT:
                raise ValueError(f"its seed is held out: {HELD_OUT} and above are evaluated on")
        except (OSError, ValueError) as error:
            left_out[one_line_reason(error)] += 1
            continue
        if (key := (trace.task, trace.actions)) not in has:
            found[key] = trace
    bars, kept, played = Bars.for_world(World.single()), Counter[str](), Counter[str]()

    async def play(pool: EnvPool, trace: Demonstration) -> None:
        replayed = await replay(pool, trace)
        on_episode(replayed.episode)
        played[trace.task.name] += 1
        if replayed.succeeds:
            append_demonstration(options.output, trace)
            kept[trace.task.name] += 1
        else:
            left_out[f"{trace.task.name}, seed {trace.task.seed}: {replayed.error}"] += 1

    if found:
        names = sorted({each.task.name for each in found.values()})
        config = options.config.replace(task=names, held_out_tasks=())
        with bars.bar("episodes", len(found)) as on_episode:
            async with shutdown, open_pool(config) as pool:
                await gather(play(pool, each) for each in found.values())
    for reason, times in left_out.items():
        bars.console.print(f"left out, {count(times, 'trace')}: {one_line(reason)}", soft_wrap=True)
    for name, number in sorted(played.items()):
        bars.console.print(f"{one_line(name)}: kept {kept[name]} of {count(number, 'trace')}")
    total = len(read_existing(options.output))
    bars.console.print(f"{options.output}: {count(total, 'demonstration')}", soft_wrap=True)
    return kept
