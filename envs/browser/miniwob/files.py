"""MiniWoB's pages on this machine."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def miniwob_url() -> str:
    """Return the address of MiniWoB's pages, files of the installed package `miniwob`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    try:  # not by the module's name: beside a script `miniwob.py` that would be the script
        package = distribution("miniwob").locate_file("miniwob")
    except PackageNotFoundError as error:
        raise ModuleNotFoundError("MiniWoB's pages are missing: run `make setup`") from error
    return (Path(str(package)) / "html" / "miniwob").as_uri() + "/"
