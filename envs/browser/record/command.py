"""The recording of a file's tasks, from two browsers to a file of demonstrations."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from envs.base import TaskError
from envs.browser.browsergym_task import BrowserGymTask
from envs.browser.live import open_live
from envs.browser.record.recorder import Closed, Recorder
from envs.browser.server.local import SERVER, check_packages
from envs.browser.task_file import TaskFile
from envs.demonstrations import append_demonstration, read_demonstrations


def tasks_to_record(file: str, names: Sequence[str]) -> list[str]:
    """Return the tasks to record: those named, or all of the file that are trained on.

    Raises:
        TaskError: one is not in the file, is held out, or is one of BrowserGym's.
    """
    tasks = TaskFile(file)
    names = names or tasks.names(held_out=False)
    for name in names:
        task = tasks.find(name)
        if task.held_out:
            raise TaskError(f"task {name!r} is held out: nothing of it may be learned")
        if isinstance(task, BrowserGymTask):
            raise TaskError(f"task {name!r} is one of BrowserGym's: expected a WebTask")
    return list(names)


def seeds_of(output: Path) -> dict[str, set[int]]:
    """Return the seeds of the demonstrations that a file has, by task; none without the file.

    Raises:
        TaskError: it is a file of something else.
        OSError: it cannot be read or written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    is_new = not output.exists()
    with open(output, "ab") as file:
        is_empty = file.tell() == 0
    if is_new:
        output.unlink()
    found: dict[str, set[int]] = {}
    try:
        for each in [] if is_empty else read_demonstrations(output):
            found.setdefault(each.task.name, set()).add(each.task.seed)
    except ValueError as error:
        raise TaskError(str(error)) from error
    return found


def run(file: str, names: Sequence[str], output: Path, **options: Any) -> None:
    """Record demonstrations; see `record`.

    Raises:
        ModuleNotFoundError: packages are missing.
    """
    check_packages(SERVER)
    asyncio.run(record(file, names, output, **options))


async def record(
    file: str,
    names: Sequence[str],
    output: Path,
    *,
    wanted: int,
    seeds: range,
    debugging_port: int = 0,
    say: Callable[[str], None] = print,
) -> None:
    """Record demonstrations of a file's tasks, one task after another.

    Each is in the output as soon as its episode is over, whatever ends the recording.

    Args:
        file: the file of the tasks.
        names: tasks; none for all that are trained on.
        output: file of demonstrations, which may have some.
        wanted: number of demonstrations of each task to add.
        seeds: seeds to take, in this order; those that the output has are left out.
        debugging_port: port of 127.0.0.1 for another client of the browser, which then has no
            window; 0 for a window.
        say: prints a line.

    Raises:
        TaskError: a task cannot be recorded or played, or the output is a file of something else.
        EnvError: a browser failed.
        FileNotFoundError: there is no Chromium, or no display.
    """
    names, known = tasks_to_record(file, names), seeds_of(output)
    path = str(Path(file).expanduser().resolve())
    args = [f"--remote-debugging-port={debugging_port}"] if debugging_port else []
    async with (
        open_live(file, visible=not debugging_port, args=args) as live,
        open_live(file) as replay,
    ):
        recorder = Recorder(live, replay, say)
        await recorder.bar.open()
        number = 0
        try:
            for name in names:
                free, kept = iter(seeds), 0
                while kept < wanted:
                    seed = next((s for s in free if s not in known.get(name, ())), None)
                    if seed is None:
                        raise TaskError(f"no seeds of {name!r} are left from {seeds.start} on")
                    shown = await recorder.record(name, seed, kept=kept, wanted=wanted)
                    if shown is not None:
                        append_demonstration(output, dataclasses.replace(shown, task_file=path))
                        number, kept = number + 1, kept + 1
        except Closed:
            say("the window was closed")
        finally:
            plural = "" if number == 1 else "s"
            say(f"\n{number} demonstration{plural} added to {output}")
