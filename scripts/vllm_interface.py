"""Compare the names of vLLM that the generators use with vLLM's sources, of any version.

python -m scripts.vllm_interface               # the tested version and the newest one
python -m scripts.vllm_interface 0.34.0        # another one
python -m scripts.vllm_interface vllm-*.whl    # a wheel that is here

Downloads each version's wheel (about 350 MB) with pip, and needs neither a GPU nor vLLM itself.
Prints what is missing; exit code 1 if anything is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from grpo.generators.vllm.interface import ENGINE, MEMORY, ROUTES, SERVER, TESTED
from grpo.generators.vllm.sources import Sources

USED = {"engine": ENGINE, "adapters in memory": MEMORY, "server": SERVER}
WHEEL = ["--only-binary=:all:", "--python-version=3.12"]
WHEEL += [f"--platform=manylinux_2_{glibc}_x86_64" for glibc in (28, 31, 34, 35)]


def main(argv: Sequence[str] | None = None) -> int:
    """Compare with each version that is asked for; return 1 if one lacks something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", help="versions, or files of wheels")
    arguments = parser.parse_args(argv)
    is_complete = True
    with tempfile.TemporaryDirectory() as folder:
        for wanted in arguments.versions or (f"{TESTED}.*", "newest"):
            wheel = Path(wanted) if wanted.endswith(".whl") else download(wanted, Path(folder))
            print(wheel.name.split("-cp")[0])
            for part, missing in compare(wheel).items():
                is_complete &= not missing
                print(f"  {part}: {'; '.join(missing) or 'everything is there'}")
    return 0 if is_complete else 1


def compare(wheel: Path) -> dict[str, list[str]]:
    """Find what a wheel of vLLM lacks, by what needs it."""
    sources = Sources(zipfile.Path(wheel))
    missing = {part: sources.missing(used) for part, used in USED.items()}
    return missing | {"paths of the server": sources.missing_routes(ROUTES)}


def download(version: str, folder: Path) -> Path:
    """Download a version's wheel; "newest" is the newest release."""
    requirement = "vllm" if version == "newest" else f"vllm=={version}"
    to = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *WHEEL]
    if subprocess.run([*command, f"--dest={to}", requirement]).returncode:
        sys.exit(f"error: pip cannot download {requirement}")
    (wheel,) = to.glob("*.whl")
    return wheel


if __name__ == "__main__":
    sys.exit(main())
