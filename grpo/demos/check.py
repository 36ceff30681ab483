"""The program behind `grpo demos check`: which demonstrations of a file still succeed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from envs.demonstrations import Demonstration, read_demonstrations
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.config import Config
from grpo.distributed import World
from grpo.errors import ConfigError
from grpo.reporting.progress import Bars, count
from grpo.rollouts.demonstrations import Replay, replay
from grpo.rollouts.gather import gather
from grpo.safe_output import one_line
from grpo.shutdown import Shutdown

OpenPool = Callable[[Config], EnvPool]
"""Makes the pool of a configuration's environment."""


def check(path: str, config: Config, open_pool: OpenPool) -> list[Replay]:
    """Play the demonstrations of a file again, and print which still succeed.

    Args:
        path: their file.
        config: the options of the environment; the demonstrations name their tasks, and, unless
            `task_file` does, the files of these.
        open_pool: makes the environments of a file of tasks.

    Returns:
        All of them, in the file's order.

    Raises:
        ConfigError: the file cannot be read.
        TaskError: an environment does not have one of the tasks.
        Stopped: a signal ended the program.
    """
    try:
        demonstrations = read_demonstrations(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    shutdown = Shutdown()
    program = _check(demonstrations, config, open_pool, shutdown)
    return wait_for(program, World.single(), shutdown)


async def _check(
    demonstrations: Sequence[Demonstration],
    config: Config,
    open_pool: OpenPool,
    shutdown: Shutdown,
) -> list[Replay]:
    bars, replays = Bars.for_world(World.single()), dict[Demonstration, Replay]()
    with bars.bar("demonstrations", len(demonstrations)) as on_episode:

        async def play(pool: EnvPool, demonstration: Demonstration) -> None:
            replays[demonstration] = await replay(pool, demonstration)
            on_episode(replays[demonstration].episode)

        async with shutdown:
            for file in sorted({each.task_file for each in demonstrations}):
                of_file = [each for each in demonstrations if each.task_file == file]
                names = list(dict.fromkeys(each.task.name for each in of_file))
                options = config.replace(
                    task=names, held_out_tasks=(), task_file=config.task_file or file
                )
                async with open_pool(options) as pool:
                    await gather(play(pool, each) for each in of_file)
    found = [replays[each] for each in demonstrations]
    bars.console.print(_table(found))
    succeed = sum(each.succeeds for each in found)
    bars.console.print(f"{succeed} of {count(len(found), 'demonstration')} succeed")
    return found


def _table(replays: Sequence[Replay]) -> Table:
    table = Table()
    for column in ("task", "seed", "actions", "result"):
        table.add_column(column, justify="right" if column in ("seed", "actions") else "left")
    for each in replays:
        task, actions = each.demonstration.task, len(each.demonstration.actions)
        result = "succeeds" if each.succeeds else f"fails: {each.error}"
        if each.differs:
            result += f" (the page before action {each.differs} is not the recorded one)"
        table.add_row(one_line(task.name), str(task.seed), str(actions), one_line(result))
    return table
