"""What an installation of the project brings, by the metadata of the installed packages."""

import tomllib
from collections.abc import Iterable
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
_FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, TOOLS = _FILE["project"], _FILE["tool"]
OLDEST = {"python_version": "3.11"}  # where nothing is left out of an extra


def brought(extra: str, bare: Iterable[str] = ()) -> set[str]:
    """Return the distributions that the project with one extra requires, and those that they do.

    Args:
        extra: the extra.
        bare: distributions whose requirements do not count, as if installed with --no-deps.
    """
    required = {canonicalize_name(d.metadata["Name"]): d.requires or [] for d in distributions()}
    extras = PROJECT["optional-dependencies"]
    required |= {PROJECT["name"]: PROJECT["dependencies"]} | {name: [] for name in bare}
    todo, seen = [(PROJECT["name"], ""), (PROJECT["name"], extra)], set()
    while todo:
        name, extra = pair = todo.pop()
        if pair in seen or name not in required:
            continue
        seen.add(pair)
        ours = name == PROJECT["name"]
        for line in extras[extra] if ours and extra else required[name]:
            wanted = Requirement(line)
            environment = {"extra": extra} | (OLDEST if ours else {})
            if wanted.marker is None or wanted.marker.evaluate(environment):
                todo += [(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)]
    return {name for name, _ in seen}


def modules_besides(extra: str, bare: Iterable[str] = ()) -> set[str]:
    """Return the installed modules that are not `brought`."""
    ours = brought(extra, bare)
    return {
        module
        for module, owners in packages_distributions().items()
        if not ours & {canonicalize_name(owner) for owner in owners}
    }
