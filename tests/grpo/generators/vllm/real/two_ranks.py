"""A training run for `test_torchrun.py`; takes the options of `grpo train`."""

from __future__ import annotations

import os
import sys
import time

from envs.scripted import ScriptedEnv
from grpo.arguments import read_config
from grpo.errors import ConfigError
from grpo.generators.vllm import memory
from grpo.reporting.report import TrainingReport
from grpo.run import train


def slowly(finish):
    """Let the main rank, which writes the summary, take longer than the other one."""

    def finish_slowly(report, trainer):
        time.sleep(3 if os.environ["RANK"] == "0" else 0)
        finish(report, trainer)

    return finish_slowly


def too_little(*_, **__):
    raise ConfigError(f"too little on rank {os.environ['RANK']}")


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ.get("TOO_LITTLE_MEMORY_ON_RANK"):
        memory.engine_memory = too_little
    TrainingReport.finish = slowly(TrainingReport.finish)
    train(read_config(sys.argv[1:], prog="two_ranks", description=__doc__), ScriptedEnv)
