"""Every scripted solver by the name of its task."""

from __future__ import annotations

from envs.browser.miniwob.solvers import (
    clicks,
    drags,
    drawn,
    fields,
    icons,
    keys,
    lookups,
    marks,
    tic_tac_toe,
)
from envs.browser.miniwob.solvers.helpers import Solver

SOLVERS: dict[str, Solver] = {
    name: solver
    for module in (clicks, drags, drawn, fields, icons, keys, lookups, marks, tic_tac_toe)
    for name, solver in module.SOLVERS.items()
}
"""A solver by the task's name, without `miniwob.`."""
