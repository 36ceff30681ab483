"""The options of `grpo doctor`. This file does not load torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grpo.arguments import Parser
from grpo.config import Config

DOCTOR = """Check what works on this machine, and how fast it is: at most three minutes, no account.

Packages, device, memory, dtypes, the model and its update, generators, a short training, browsers.
One line per check: pass, fail or skipped, with what to do. The exit code is 1 if one fails."""


class DoctorOptions(NamedTuple):
    """What to check, and whether a JSON object is printed as the last line."""

    config: Config
    as_json: bool


def read_options(argv: Sequence[str]) -> DoctorOptions:
    """Read the options of `grpo doctor`.

    Raises:
        ConfigError: one is unknown, or its value is wrong.
    """
    parser = Parser(prog="grpo doctor", description=DOCTOR, allow_abbrev=False)
    names = ("model", "device", "dtype")
    for name in names:
        field = Config.model_fields[name]
        suffix = f" (default: {field.default})" if field.default else ""
        parser.add_argument(
            f"--{name}", default=field.default, metavar="TEXT", help=f"{field.description}{suffix}"
        )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object with all figures as the last line"
    )
    given = parser.parse_args(argv)
    return DoctorOptions(Config(**{name: getattr(given, name) for name in names}), given.json)
