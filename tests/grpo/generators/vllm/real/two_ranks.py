"""A training run for `test_torchrun.py`; takes the options of `grpo train`."""

from __future__ import annotations

import os
import sys
import time

from envs.scripted import ScriptedEnv
from grpo.arguments import read_config
from grpo.reporting.report import TrainingReport
from grpo.run import train


def slowly(finish):
    """Let the main rank, which writes the summary, take longer than the other one."""

    def finish_slowly(report, trainer):
        time.sleep(3 if os.environ["RANK"] == "0" else 0)
        finish(report, trainer)

    return finish_slowly


if __name__ == "__main__":
    TrainingReport.finish = slowly(TrainingReport.finish)
    train(read_config(sys.argv[1:], prog="two_ranks", description=__doc__), ScriptedEnv)
