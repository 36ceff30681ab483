"""Where the browser and MiniWoB's pages are on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

CHROMIUM_ARGS = (
    "--headless",
    "--disable-features=OverlayScrollbars,ExtendedOverlayScrollbars,OptimizationHints,MediaRouter",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--force-color-profile=srgb",
    "--mute-audio",
    # A page is left for good: keeping the old one costs a third more time.
    "--disable-back-forward-cache",
    # All pages are at work, though at most one could be in front.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-ipc-flooding-protection",
    "--disable-hang-monitor",
    # Nothing but pages.
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--password-store=basic",
    # Every host name and address fails to resolve: the pages are files.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
"""Command line of every browser: scrollbars as on a desktop, and no network."""

# The packages' real binaries: the wrapper scripts in /usr/bin start slower and add flags.
_BINARIES = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
_NAMES = (
    "chrome-headless-shell",
    "chromium-headless-shell",
    "chromium",
    "google-chrome",
)
_PLAYWRIGHT_DOWNLOADS = (
    "chromium_headless_shell-*/*/headless_shell",
    "chromium_headless_shell-*/*/chrome-headless-shell",
    "chromium-*/*/chrome",
)


def find_chromium() -> str:
    """Find a Chromium: `GRPO_CHROMIUM`, Debian's packages, `PATH`, then Playwright's download.

    Returns:
        The path of the executable.

    Raises:
        FileNotFoundError: there is none, or `GRPO_CHROMIUM` names something else.
    """
    chosen = os.environ.get("GRPO_CHROMIUM")
    if chosen:
        if not os.access(chosen, os.X_OK) or not os.path.isfile(chosen):
            raise FileNotFoundError(f"GRPO_CHROMIUM must be an executable file, got {chosen!r}")
        return chosen
    for path in (*_BINARIES, *map(shutil.which, _NAMES), *_downloads()):
        if path and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(
        "no Chromium found: run `make setup`, or set GRPO_CHROMIUM to the path of one"
    )


def miniwob_url() -> str:
    """Return the address of MiniWoB's pages, files of the installed `miniwob` package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("miniwob")  # not imported: it would import selenium
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("MiniWoB's pages are missing: run `make setup`")
    return (Path(spec.origin).parent / "html" / "miniwob").as_uri() + "/"


def _downloads() -> list[str]:
    cache = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    if cache in (None, "", "0"):
        folders = [
            Path.home() / ".cache/ms-playwright",
            Path.home() / "Library/Caches/ms-playwright",
        ]
    else:
        folders = [Path(cache)]
    return [
        str(path)
        for folder in folders
        for pattern in _PLAYWRIGHT_DOWNLOADS
        for path in sorted(folder.glob(pattern), reverse=True)
    ]
