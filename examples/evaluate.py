"""What a policy is worth: success on held-out seeds, and episodes to flip through.

    python examples/evaluate.py --task click-button           # the untrained model
    python examples/evaluate.py --adapter runs/click-test     # a run's, with the run's options
    python examples/evaluate.py --adapter user/name --task click-test,login-user --episodes 50

Prints success of each task with its 95 % interval beside a random policy and a blind one, and
leaves in the run's folder: evaluation.json, and media/index.html with some of the episodes.
Takes the options of click_test.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from envs.browser.pool import browser_pool
from grpo.config import Config, ConfigError
from grpo.reporting.report import examine
from grpo.run import main

CONFIGS = Path(__file__).parent / "configs"


def read_config() -> Config:
    """The configuration; `--adapter` may name a run, whose options then count unless given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--adapter", default="")
    parser.add_argument("--episodes", default=None)
    own, given = parser.parse_known_args()
    options = ["--adapter", own.adapter]
    folder = Path(own.adapter)
    if own.adapter and (folder / "config.yaml").is_file():
        options = ["--config", str(folder / "config.yaml"), "--output", str(folder)]
        if (folder / "adapter").is_dir():
            options += ["--adapter", str(folder / "adapter")]
        elif (folder / "model").is_dir():  # every weight was trained
            options += ["--adapter", "", "--model", str(folder / "model")]
        else:
            raise ConfigError(f"expected adapter/ or model/ in {own.adapter}: has the run ended?")
    if own.episodes is not None:
        options += ["--eval-episodes", own.episodes]
    return Config.from_command_line([*options, *given], str(__doc__), CONFIGS)


if __name__ == "__main__":
    sys.exit(main(read_config, browser_pool, program=examine))
