"""Every scripted solver by the name of its task."""

from __future__ import annotations

from envs.browser.miniwob.solvers import clicks, fields, icons, keys, lookups, tic_tac_toe
from envs.browser.miniwob.solvers.helpers import Solver

SOLVERS: dict[str, Solver] = {
    **clicks.SOLVERS,
    **fields.SOLVERS,
    **icons.SOLVERS,
    **keys.SOLVERS,
    **lookups.SOLVERS,
    **tic_tac_toe.SOLVERS,
}
"""A solver by the task's name, without `miniwob.`."""
