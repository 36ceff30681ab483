"""Scripted solvers of MiniWoB tasks: the oracle of tests, warm starts and benchmarks.

Each reads the goal and the page as the policy does and returns the next action. The docstring
of a solver is an example of a goal that it reaches.
"""

from envs.browser.miniwob.solvers.helpers import Solver
from envs.browser.miniwob.solvers.registry import SOLVERS

__all__ = ["SOLVERS", "Solver"]
