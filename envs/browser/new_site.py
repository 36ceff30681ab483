"""A first site with a task of the user's own: what `grpo new` writes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

TEMPLATE = Path(__file__).parent / "template"

CONTENT = {
    "tasks.py": "the task: how it starts, and when it is done",
    "pages/index.html": "the page",
    "config.yaml": "options of its training",
}
"""The files of the template, and what they hold."""


def write_site(folder: Path) -> list[Path]:
    """Write a page, a task on it and the options of its training; return the files.

    Args:
        folder: created where it is missing.

    Raises:
        FileExistsError: it is a file, or a folder that is not empty.
        OSError: it cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        kind = "one with files in it" if folder.is_dir() else "a file"
        raise FileExistsError(f"expected a new or empty folder, got {kind}: {str(folder)!r}")
    for name in CONTENT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(TEMPLATE / name, folder / name)
    return [folder / name for name in CONTENT]


def next_steps(folder: Path, grpo: str = "grpo") -> str:
    """Return what a user reads after `write_site`: the files, and the next commands.

    Args:
        folder: what `write_site` was called with.
        grpo: how the command is typed.
    """
    tasks = shlex.quote(str(folder / "tasks.py"))
    run = shlex.quote(f"runs/{folder.resolve().name}")
    commands = {
        f"{grpo} inspect {tasks}": "what the model reads, and a picture of it",
        f"{grpo} train {tasks}": "some minutes on two cores",
        f"{grpo} eval --adapter {run}": "how often it succeeds",
    }
    files = {str(folder / name): text for name, text in CONTENT.items()}
    width = max(map(len, [*files, *commands]))
    lines = [f"  {left:<{width}}  {text}" for left, text in files.items()]
    lines += ["", "Next:", *(f"  {left:<{width}}  {text}" for left, text in commands.items())]
    return "\n".join(lines)
