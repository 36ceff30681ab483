"""Set up this checkout: .venv, torch, packages, Chromium and the bundled model.

Run by `make setup`. A second call installs only what is missing. Standard library only, since it
runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import recipes
from recipes import ROOT, Command, Recipe, SetupError, take_first

VENV, REFERENCE, VLLM = ROOT / ".venv", ROOT / ".venv-reference", ROOT / ".venv-vllm"
PYTHON = str(VENV / "bin" / "python")
CONSTRAINTS, CONSTRAINTS_VLLM = ROOT / "constraints.txt", ROOT / "constraints-vllm.txt"
LOG = ROOT / ".cache" / "setup.log"
BEGUN: dict[Command, Future[bool]] = {}
"""Commands that run in threads since `begin`."""
MODEL = ROOT / ".cache" / "smollm2-135m-instruct" / "model.safetensors"


class Stage(NamedTuple):
    """A component: `is_done` looks for it, `make` installs it and returns the recipe's name."""

    name: str
    is_done: Callable[[], bool]
    make: Callable[[], str]


def begin(command: Command) -> None:
    """Run a command in a thread, with a log of its own, until `run` is asked for it."""
    thread = ThreadPoolExecutor(1)
    BEGUN[command] = thread.submit(run, command, LOG.with_name("setup-begun.log"))
    thread.shutdown(wait=False)


def run(command: Command, log: Path = LOG) -> bool:
    """Run a command with its output in a log; False if it failed or is not installed."""
    if log == LOG and command in BEGUN:
        return BEGUN.pop(command).result()
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "OMP_NUM_THREADS": "1"}
    with log.open("a") as output:
        print("\n$", *command, file=output, flush=True)
        try:
            return not subprocess.call(
                command,
                cwd=ROOT,
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            print(error, file=output)
            return False


def version_of(python: str) -> recipes.Version | None:
    """Ask an interpreter for its version; None if it is missing or does not run."""
    ask = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = done.stdout.split()
    return int(major), int(minor)


def build_for(device: str) -> str:
    """Choose the build of torch and vLLM for this machine; see `recipes.choose_build`."""
    nvidia = device == "auto" and shutil.which("nvidia-smi") is not None and run(("nvidia-smi",))
    return recipes.choose_build(device, sys.platform, platform.machine(), nvidia)


def has_venv(asked: str | None) -> bool:
    """Look for a complete .venv.

    Raises:
        SetupError: it is built on another version than that of `asked`.
    """
    there = Path(PYTHON).exists() and (VENV / "bin" / "pip").exists()
    if there and asked and version_of(asked) != version_of(PYTHON):
        raise SetupError(f".venv is not built on PYTHON={asked}: run make clean first.")
    return there


def has_torch(version: str, device: str) -> bool:
    """Look for torch of this version in .venv.

    Raises:
        SetupError: it is not for the device that was asked for.
    """
    folders = list(VENV.glob(f"lib/python3*/site-packages/torch-{version}[.+]*dist-info"))
    for folder in folders:
        recipes.check_torch(folder.name[len("torch-") : -len(".dist-info")], device)
    return bool(folders)


def key() -> str:
    """Return a hash of the files that decide which packages are installed."""
    files = [CONSTRAINTS, CONSTRAINTS_VLLM, ROOT / "pyproject.toml"]
    files += sorted((ROOT / "scripts").glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def is_stamped(venv: Path) -> bool:
    """Tell whether this environment was installed from the files as they are now."""
    stamp = venv / "setup-stamp"
    return stamp.is_file() and stamp.read_text() == key()


def make_venv(asked: str | None, apt: bool) -> str:
    """Build .venv on `asked`, or on the newest Python that can."""
    pythons = recipes.choose_pythons(asked, version_of)
    package = "python{}.{}-venv".format(*next(iter(pythons.values())))
    advice = f"Python's venv module does not work. As root: apt-get install {package}"
    try:
        return take_first(recipes.venv_recipes(pythons, str(VENV), apt), run, advice)
    except SetupError:
        shutil.rmtree(VENV, ignore_errors=True)  # has_venv would take half of one for complete
        raise


def make_torch(version: str, device: str) -> str:
    """Install the build of torch that suits the device."""
    advice = (
        f"torch=={version} could not be installed. Check the network, or put its wheel for this "
        "Python in a folder: make setup PIP_FIND_LINKS=<folder>. PyPI's CUDA build (5 GB) runs on "
        "a CPU, too: make setup DEVICE=cuda"
    )
    if sys.platform == "darwin":
        advice = f"torch=={version} could not be installed: it needs macOS 14, and the network."
    builds = recipes.torch_recipes(PYTHON, version, str(CONSTRAINTS), build_for(device))
    return take_first(builds, run, advice)


def make_packages() -> str:
    """Install the project in place with its requirements, except torch."""
    advice = "the packages could not be installed. Check the network and the disk, and try again."
    recipe = take_first(recipes.package_recipes(PYTHON, str(ROOT), str(CONSTRAINTS)), run, advice)
    (VENV / "setup-stamp").write_text(key())
    return recipe


def has_apt() -> bool:
    """Tell whether apt may be used."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def has_chromium() -> bool:
    """Look for a Chromium, but not for one that is being installed."""
    return not BEGUN and bool(recipes.find_chromium())


def begin_chromium() -> None:
    """Begin to install a Chromium if apt has one: nothing in .venv is needed for that."""
    if has_apt() and not has_chromium():
        begin(recipes.chromium_recipes(PYTHON, root=True, apt=True)[0].commands[0])


def make_chromium(root: bool, apt: bool) -> str:
    """Install a Chromium and check that it starts."""
    advice = (
        "no Chromium could be installed. As root: apt-get install chromium-headless-shell; "
        "or install Google Chrome, or set GRPO_CHROMIUM to the path of one that you have"
    )
    recipe = take_first(recipes.chromium_recipes(PYTHON, root, apt), run, advice)
    found = recipes.find_chromium()
    if found is None or not run((found, "--version")):
        advice = f"{PYTHON} -m playwright install-deps chromium-headless-shell"
        raise SetupError(f"Chromium does not start; libraries may be missing. As root: {advice}")
    return recipe


def make_model() -> str:
    """Convert the bundled model's GGUF file to a Hugging Face folder."""
    # By its path, without the package: where images are built, the other files are missing.
    convert = "import runpy; runpy.run_path('grpo/model/bundled.py')['bundled_model_path']()"
    advice = "the bundled model could not be converted; it needs 1.2 GB in .cache."
    return take_first([Recipe("from GGUF", ((PYTHON, "-c", convert),))], run, advice)


def overlay(venv: Path, constraints: Path) -> tuple[Command, ...]:
    """Return the commands that make an environment on top of .venv."""
    (packages,) = VENV.glob("lib/python3*/site-packages")
    paths = map(str, (venv, packages, ROOT, constraints))
    return recipes.overlay_commands(PYTHON, *paths)


def make_reference() -> str:
    """Build an environment for TRL and PEFT on top of .venv."""
    python = str(REFERENCE / "bin" / "python")
    install = recipes.pip_install(python, "trl", "peft", "-c", str(CONSTRAINTS))
    advice = "TRL and PEFT could not be installed. Check the network, and try again."
    recipe = take_first([Recipe("pip", (*overlay(REFERENCE, CONSTRAINTS), install))], run, advice)
    (REFERENCE / "setup-stamp").write_text(key())
    return recipe


def make_vllm(device: str) -> str:
    """Build an environment for vLLM on top of .venv."""
    python = str(VLLM / "bin" / "python")
    advice = "vLLM could not be installed. Check the network and the disk, and try again."
    builds = recipes.vllm_recipes(python, str(CONSTRAINTS_VLLM), build_for(device))
    builds = [
        Recipe(build.name, (*overlay(VLLM, CONSTRAINTS_VLLM), *build.commands)) for build in builds
    ]
    recipe = take_first(builds, run, advice)
    (VLLM / "setup-stamp").write_text(key())
    return recipe


def stages(asked: str | None, device: str, *, reference: bool, vllm: bool) -> list[Stage]:
    """List the components, each after those that it needs."""
    root, apt = os.geteuid() == 0, has_apt()
    torch = recipes.pinned("torch", CONSTRAINTS.read_text())
    components = [
        Stage("venv", lambda: has_venv(asked), lambda: make_venv(asked, apt)),
        Stage("torch", lambda: has_torch(torch, device), lambda: make_torch(torch, device)),
        Stage("packages", lambda: is_stamped(VENV), make_packages),
        Stage("chromium", has_chromium, lambda: make_chromium(root, apt)),
        Stage("model", MODEL.is_file, make_model),
    ]
    if reference:
        components.append(Stage("reference", lambda: is_stamped(REFERENCE), make_reference))
    if vllm:
        components.append(Stage("vllm", lambda: is_stamped(VLLM), lambda: make_vllm(device)))
    return components


def main() -> int:
    """Install what is missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="interpreter to build .venv on")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "rocm"),
        default="auto",
        help="what torch and vLLM are built for; auto looks for an NVIDIA GPU on this machine, and "
        "a Mac has one build",
    )
    parser.add_argument("--reference", action="store_true", help="also make .venv-reference")
    parser.add_argument("--vllm", action="store_true", help="also make .venv-vllm")
    arguments = parser.parse_args()
    extras = {"reference": arguments.reference, "vllm": arguments.vllm}
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    start = time.perf_counter()
    try:
        for stage in stages(arguments.python, arguments.device, **extras):
            if not stage.is_done():
                print(f"setup: {stage.name} ...", end=" ", flush=True)
                began = time.perf_counter()
                recipe = stage.make()
                print(f"{time.perf_counter() - began:.1f} s ({recipe})", flush=True)
            if stage.name == "venv":  # which may have needed apt itself
                begin_chromium()
    except SetupError as error:
        last = LOG.read_text().split("\n$ ")[-1].strip().splitlines()
        print(f"\nsetup: failed: {error}", file=sys.stderr)
        if last:
            print(f"setup: last output ({LOG}): {last[-1]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; run it again to continue", file=sys.stderr)
        return 130
    print(f"setup: ready, {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
