"""Scripted solvers of MiniWoB tasks: the oracle of tests and benchmarks.

Each reads the goal and the page as the policy does, and answers with the next action. Its
docstring is a goal that it meets.
"""

from __future__ import annotations

from envs.browser.miniwob.solvers import clicks, fields, lookups
from envs.browser.miniwob.solvers.page import Solver

SOLVERS: dict[str, Solver] = {**clicks.SOLVERS, **fields.SOLVERS, **lookups.SOLVERS}
"""A solver by the task's name, without `miniwob.`."""

__all__ = ["SOLVERS", "Solver"]
