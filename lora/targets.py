"""Module names that PEFT's settings choose: lists of names, and regular expressions.

Names are matched exactly as PEFT 0.21 does in `check_target_module_exists`
(peft/tuners/tuners_utils.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

PATTERN_SECONDS = 10.0

# Run in a process of its own, which can be stopped: a regular expression such as "(a+)+$" takes
# time that is exponential in the length of a name, and `re` cannot be interrupted.
_MATCH = """
import json, re, sys
method, patterns, names = json.load(sys.stdin)
compiled = [re.compile(pattern) for pattern in patterns]
found = [[getattr(p, method)(name) for p in compiled] for name in names]
numbers = [next((m.groupdict().get("idx") or "" for m in row if m), None) for row in found]
json.dump(numbers, sys.stdout)
"""


def matches(name: str, target: str) -> bool:
    """Tell whether the dotted `name` is `target` or ends with "." and `target`."""
    return name == target or name.endswith(f".{target}")


def matching(wanted: str | Sequence[str], names: Sequence[str]) -> set[str]:
    """Choose the names that a list of names or a regular expression stands for.

    Args:
        wanted: names, which match at the end of a module's path, or one regular expression, which
            matches whole paths; an empty one matches nothing.
        names: the full names of modules.

    Raises:
        ValueError: `wanted` is not a regular expression, or takes too long.
    """
    if not isinstance(wanted, str):
        return {name for name in names if any(matches(name, w) for w in wanted)}
    found = _run("fullmatch", [wanted], names) if wanted else [None] * len(names)
    return {name for name, match in zip(names, found, strict=True) if match is not None}


def in_layers(names: Sequence[str], layers: Sequence[int], patterns: Sequence[str]) -> set[str]:
    """Choose the names of modules that are in one of these layers.

    Args:
        names: the full names of modules.
        layers: numbers of layers.
        patterns: regular expressions of what stands before a layer's number, such as "layers";
            without one, any component but the first of the name.

    Raises:
        ValueError: a pattern is not a regular expression, or takes too long.
    """
    numbered = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns]
    found = _run("match", numbered or [r".*?\.[^.]*\.(?P<idx>\d+)\."], names)
    return {
        name for name, number in zip(names, found, strict=True) if number and int(number) in layers
    }


def _run(method: str, patterns: list[str], names: Sequence[str]) -> list[str | None]:
    """Match each name: group "idx" ("" without it) of the first pattern that matches, or None."""
    try:
        done = subprocess.run(
            [sys.executable, "-ISW", "ignore", "-c", _MATCH],
            input=json.dumps([method, patterns, list(names)]),
            capture_output=True,
            text=True,
            timeout=PATTERN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"takes more than {PATTERN_SECONDS:g} s to match the names of the model's modules"
        ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ValueError(f"is not a regular expression ({reason})")
    found: list[str | None] = json.loads(done.stdout)
    return found
