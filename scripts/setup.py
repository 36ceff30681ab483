"""Make this checkout ready: .venv, torch, packages, Chromium and the bundled model.

What is there is not done again, so a second call takes a moment. Run by `make setup`; standard
library only, for it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import recipes
from recipes import Command, Recipe, SetupError, take_first

ROOT = Path(__file__).resolve().parent.parent
VENV, REFERENCE, VLLM = ROOT / ".venv", ROOT / ".venv-reference", ROOT / ".venv-vllm"
PYTHON = str(VENV / "bin" / "python")
CONSTRAINTS, CONSTRAINTS_VLLM = ROOT / "constraints.txt", ROOT / "constraints-vllm.txt"
LOG = ROOT / ".cache" / "setup.log"
MODEL = ROOT / ".cache" / "smollm2-135m-instruct" / "model.safetensors"


class Stage(NamedTuple):
    """A piece: `is_done` looks for it, `make` brings it and says how."""

    name: str
    is_done: Callable[[], bool]
    make: Callable[[], str]


def run(command: Command) -> bool:
    """Run a command, its output into the log; False if it failed or is not there."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "OMP_NUM_THREADS": "1"}
    with LOG.open("a") as log:
        print("\n$", *command, file=log, flush=True)
        try:
            return not subprocess.call(
                command,
                cwd=ROOT,
                env={**os.environ, **quiet},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            print(error, file=log)
            return False


def version_of(python: str) -> recipes.Version | None:
    """Ask an interpreter for its version; None if it is missing or does not run."""
    ask = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        answer = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = answer.stdout.split()
    return int(major), int(minor)


def has_gpu(device: str) -> bool:
    """Tell whether to build for an NVIDIA GPU; auto: if one and its driver are here."""
    if device != "auto":
        return device == "cuda"
    return shutil.which("nvidia-smi") is not None and run(("nvidia-smi",))


def has_venv(asked: str | None) -> bool:
    """Look for .venv, whole, and of the version that was asked for."""
    there = Path(PYTHON).exists() and (VENV / "bin" / "pip").exists()
    if there and asked and version_of(asked) != version_of(PYTHON):
        raise SetupError(f".venv is not of PYTHON={asked}: make clean, and call again.")
    return there


def has_torch(version: str) -> bool:
    """Look for torch of this version, any build, in .venv."""
    return any(VENV.glob(f"lib/python3*/site-packages/torch-{version}[.+]*dist-info"))


def key() -> str:
    """Hash the files that decide which packages an environment holds."""
    files = [CONSTRAINTS, CONSTRAINTS_VLLM, ROOT / "pyproject.toml"]
    files += sorted((ROOT / "scripts").glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def is_stamped(venv: Path) -> bool:
    """Tell whether this environment was filled from the files as they are now."""
    stamp = venv / "setup-stamp"
    return stamp.is_file() and stamp.read_text() == key()


def make_venv(asked: str | None, apt: bool) -> str:
    """Build .venv on the newest Python that can, or on the one that was asked for."""
    pythons = recipes.choose_pythons(asked, version_of)
    package = "python{}.{}-venv".format(*next(iter(pythons.values())))
    advice = f"Python's venv module does not work. As root: apt-get install {package}"
    try:
        return take_first(recipes.venv_recipes(pythons, str(VENV), apt), run, advice)
    except SetupError:
        shutil.rmtree(VENV, ignore_errors=True)  # half an environment would pass for a whole one
        raise


def make_torch(version: str, device: str) -> str:
    """Install the build of torch that suits the device."""
    advice = (
        f"torch=={version} could not be installed. Check the network, or put its wheel for this "
        "Python in a folder: make setup PIP_FIND_LINKS=<folder>"
    )
    ways = recipes.torch_recipes(PYTHON, version, str(CONSTRAINTS), has_gpu(device))
    return take_first(ways, run, advice)


def make_packages() -> str:
    """Install the project in place and all it needs, torch staying as it is."""
    advice = "the packages could not be installed. Check the network and the disk, and call again."
    how = take_first(recipes.package_recipes(PYTHON, str(ROOT), str(CONSTRAINTS)), run, advice)
    (VENV / "setup-stamp").write_text(key())
    return how


def make_chromium(root: bool, apt: bool) -> str:
    """Install a Chromium and see it start."""
    advice = (
        "no Chromium could be installed. As root: apt-get install chromium-headless-shell; "
        "or name the binary of one that you have: export GRPO_CHROMIUM=<its path>"
    )
    how = take_first(recipes.chromium_recipes(PYTHON, root, apt), run, advice)
    found = recipes.find_chromium()
    if found is None or not run((found, "--version")):
        advice = f"{PYTHON} -m playwright install-deps chromium-headless-shell"
        raise SetupError(f"Chromium does not start, libraries may be missing. As root: {advice}")
    return how


def make_model() -> str:
    """Turn the bundled model's GGUF file into a Hugging Face folder."""
    # As a file of its own: a slip elsewhere in the package is no matter of set-up's.
    convert = "import runpy; runpy.run_path('grpo/model/bundled.py')['bundled_model_path']()"
    advice = "the bundled model could not be converted (it takes 1.2 GB in .cache for a moment)."
    return take_first([Recipe("from GGUF", ((PYTHON, "-c", convert),))], run, advice)


def shared_venv(venv: Path) -> tuple[Command, ...]:
    """Spell how an environment is made that sees .venv's packages behind its own."""
    share = (
        "import pathlib, sysconfig, sys; "
        "pathlib.Path(sysconfig.get_path('purelib'), 'shared.pth').write_text(sys.argv[1])"
    )
    packages = map(str, VENV.glob("lib/python3*/site-packages"))
    return (
        (PYTHON, "-m", "venv", "--clear", str(venv)),
        (str(venv / "bin" / "python"), "-c", share, *packages),
    )


def make_reference() -> str:
    """Build an environment for TRL and PEFT that sees .venv's packages, torch among them."""
    python = str(REFERENCE / "bin" / "python")
    install = recipes.pip_install(python, "trl", "peft", "-c", str(CONSTRAINTS))
    advice = "TRL and PEFT could not be installed. Check the network, and call again."
    how = take_first([Recipe("pip", (*shared_venv(REFERENCE), install))], run, advice)
    (REFERENCE / "setup-stamp").write_text(key())
    return how


def make_vllm(device: str) -> str:
    """Build an environment for vLLM that sees .venv's packages, torch among them."""
    python = str(VLLM / "bin" / "python")
    advice = "vLLM could not be installed. Check the network and the disk, and call again."
    ways = recipes.vllm_recipes(python, str(CONSTRAINTS_VLLM), has_gpu(device))
    ways = [Recipe(way.name, (*shared_venv(VLLM), *way.commands)) for way in ways]
    how = take_first(ways, run, advice)
    (VLLM / "setup-stamp").write_text(key())
    return how


def stages(asked: str | None, device: str, *, reference: bool, vllm: bool) -> list[Stage]:
    """List the pieces in the order in which they lean on each other."""
    root = os.geteuid() == 0
    apt = root and shutil.which("apt-get") is not None
    torch = recipes.pinned("torch", CONSTRAINTS.read_text())
    every = [
        Stage("venv", lambda: has_venv(asked), lambda: make_venv(asked, apt)),
        Stage("torch", lambda: has_torch(torch), lambda: make_torch(torch, device)),
        Stage("packages", lambda: is_stamped(VENV), make_packages),
        Stage("chromium", lambda: bool(recipes.find_chromium()), lambda: make_chromium(root, apt)),
        Stage("model", MODEL.is_file, make_model),
    ]
    if reference:
        every.append(Stage("reference", lambda: is_stamped(REFERENCE), make_reference))
    if vllm:
        every.append(Stage("vllm", lambda: is_stamped(VLLM), lambda: make_vllm(device)))
    return every


def main() -> int:
    """Do the stages whose piece is missing; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter to build .venv on")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="what torch and vLLM are built for (an image's is not that of who builds it)",
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
                how = stage.make()
                print(f"{time.perf_counter() - began:.1f} s ({how})", flush=True)
    except SetupError as error:
        last = LOG.read_text().split("\n$ ")[-1].strip().splitlines()
        print(f"\nsetup: failed: {error}", file=sys.stderr)
        if last:
            print(f"setup: last output ({LOG}): {last[-1]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; call again to go on", file=sys.stderr)
        return 130
    print(f"setup: ready, {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
