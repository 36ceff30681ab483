"""Several MiniWoB tasks at once: one adapter learns them all.

    python examples/miniwob.py --suite easy             # buttons, links, dialogs, tabs
    python examples/miniwob.py --suite forms            # two actions and more
    python examples/miniwob.py --tasks click-tab,login-user --held-out-tasks enter-password

As click_test.py, with the success of each task, and of an oracle beside it: the scripted solver,
which does nothing where there is none.
A suite is a file in examples/configs/; its keys are this program's options. `--suite all` takes
every task that the oracle solves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from envs.browser.miniwob.solvers import SOLVERS
from envs.browser.pool import browser_pool
from grpo.config import Config
from grpo.run import main
from grpo.training.warm_start import oracle_agent

CONFIGS = Path(__file__).parent / "configs"


def read_config() -> Config:
    """The suite's file, or the tasks that are named, then the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", choices=("easy", "forms", "all"))
    parser.add_argument("--tasks")
    ours, others = parser.parse_known_args()
    if ours.suite:
        others = ["--config", str(CONFIGS / f"{ours.suite}.yaml"), *others]
        others = ["--output", f"runs/{ours.suite}", *others]
    if ours.suite == "all":
        others = ["--task", ",".join(sorted(SOLVERS)), *others]
    if ours.tasks:
        others = ["--task", ours.tasks, *others]
    return Config.from_command_line(others, str(__doc__), CONFIGS)


if __name__ == "__main__":
    sys.exit(main(read_config, browser_pool, {"oracle": oracle_agent()}))
