"""MiniWoB's pages on this machine."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def miniwob_url() -> str:
    """Return the address of MiniWoB's pages, files of the installed package `miniwob`.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("miniwob")  # not imported: it would import selenium
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("MiniWoB's pages are missing: run `make setup`")
    return (Path(spec.origin).parent / "html" / "miniwob").as_uri() + "/"
