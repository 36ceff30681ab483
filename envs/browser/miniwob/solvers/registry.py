"""Every scripted solver by the name of its task."""

from __future__ import annotations

from envs.browser.miniwob.solvers import clicks, fields, lookups
from envs.browser.miniwob.solvers.helpers import Solver

SOLVERS: dict[str, Solver] = {**clicks.SOLVERS, **fields.SOLVERS, **lookups.SOLVERS}
"""A solver by the task's name, without `miniwob.`."""
