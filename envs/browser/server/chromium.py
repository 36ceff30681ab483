"""The Chromium of this machine and its arguments. Standard library only: set-up loads this file."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

CHROMIUM_ARGS = (
    "--headless",
    "--disable-features=OverlayScrollbars,ExtendedOverlayScrollbars,OptimizationHints,MediaRouter",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm is small
    "--force-color-profile=srgb",
    "--mute-audio",
    # Pages are never revisited: keeping them costs a third more time.
    "--disable-back-forward-cache",
    # All pages are in use, though at most one could be in front.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-ipc-flooding-protection",
    "--disable-hang-monitor",
    # Nothing except pages.
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
    "--use-mock-keychain",  # or a Mac asks for a password
)
"""Arguments of every Chromium: scrollbars as on a desktop, and nothing but pages."""

PAGE_ARGS = (
    # The frames of a page are in one process, so that one session reads all their trees.
    "--disable-site-isolation-trials",
    # WebRTC would send packets past the proxy.
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    # A site at `localhost` must not open the way to other names of this machine.
    "--host-resolver-rules=MAP *.localhost ~NOTFOUND",
)
"""Arguments for the pages that are served: of Chromiums that the server starts."""

# Real binaries of Debian's packages: the wrapper scripts in /usr/bin start slower and add flags.
_DEBIAN = ("/usr/lib/chromium/chromium-headless-shell", "/usr/lib/chromium/chromium")
_NAMES = ("chrome-headless-shell", "chromium-headless-shell", "chromium", "google-chrome")
_HEADLESS_SHELL = re.compile(r"headless[-_]shell[^/]*$")
_PLAYWRIGHT = (
    *("chromium*/*/*headless[-_]shell", "chromium-*/*/chrome"),
    "chromium-*/*/*.app/Contents/MacOS/*",  # on a Mac
)
_MAC = tuple(
    f"{folder}/Applications/{name}.app/Contents/MacOS/{name}"
    for name in ("Google Chrome", "Chromium")
    for folder in ("", "~")
)
_PLAYWRIGHT_CACHES = ("~/.cache/ms-playwright", "~/Library/Caches/ms-playwright")


def chromium_args(*, visible: bool = False) -> list[str]:
    """Return the arguments of every Chromium on this machine.

    Args:
        visible: True for one with a window on the screen.
    """
    # Chromium does not start with its sandbox as root.
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    args = [arg for arg in CHROMIUM_ARGS if not (visible and arg == "--headless")]
    return [*args, *(["--no-sandbox"] if root else [])]


def find_chromium(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of a Chromium executable; see `search_chromium`.

    Raises:
        FileNotFoundError: there is none, or `GRPO_CHROMIUM` is not an executable file.
    """
    path = search_chromium(environ)
    if path is None:
        raise FileNotFoundError(
            "no Chromium found: run `make setup` in a checkout or `playwright install chromium`, "
            "or set GRPO_CHROMIUM to its path"
        )
    return path


def find_visible_chromium(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of a Chromium that can show a window; see `search_chromium`.

    Raises:
        FileNotFoundError: there is none, or no display to show it on.
    """
    chosen = environ.get("GRPO_CHROMIUM")
    paths = [find_chromium(environ)] if chosen else filter(_is_executable, _candidates(environ))
    path = next((path for path in paths if not _HEADLESS_SHELL.search(path)), None)
    if path is None:
        shell = search_chromium(environ)
        found = f"{shell} has no window" if shell else "no Chromium found"
        raise FileNotFoundError(
            f"a visible browser needs Chromium itself, {found}: install Debian's package chromium, "
            "run `playwright install chromium`, or set GRPO_CHROMIUM to its path"
        )
    if sys.platform == "linux" and not environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        raise FileNotFoundError(
            "a visible browser needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set"
        )
    return path


def search_chromium(environ: Mapping[str, str] = os.environ) -> str | None:
    """Search for a Chromium: `GRPO_CHROMIUM`, Debian's packages, `PATH`, downloads, a Mac's apps.

    The downloads are Playwright's, newest first.

    Args:
        environ: environment variables.

    Returns:
        The path of the first executable; None if there is none.

    Raises:
        FileNotFoundError: `GRPO_CHROMIUM` is not an executable file.
    """
    chosen = environ.get("GRPO_CHROMIUM")
    if chosen:
        if not _is_executable(chosen):
            raise FileNotFoundError(f"GRPO_CHROMIUM must be an executable file, got {chosen!r}")
        return chosen
    return next(filter(_is_executable, _candidates(environ)), None)


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    yield from _DEBIAN
    for name in _NAMES:
        yield shutil.which(name, path=environ.get("PATH")) or ""
    cache = environ.get("PLAYWRIGHT_BROWSERS_PATH", "")
    for folder in [cache] if cache not in ("", "0") else _PLAYWRIGHT_CACHES:
        for pattern in _PLAYWRIGHT:
            yield from map(str, sorted(Path(folder).expanduser().glob(pattern), key=_newest_first))
    yield from map(os.path.expanduser, _MAC)


def _newest_first(download: Path) -> int:
    revision = re.search(r".*/chromium[^/]*-(\d+)/", download.as_posix())
    return -int(revision[1]) if revision else 0


def _is_executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
