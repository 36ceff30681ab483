"""The main job: a small language model learns to click in a real browser.

    python examples/click_test.py                       # the bundled model on click-test
    python examples/click_test.py --task click-button   # another MiniWoB task
    python examples/click_test.py --model LiquidAI/LFM2-350M --max-turns 10

Evaluates, trains, evaluates again, and leaves in the run's folder: the adapter, TensorBoard
events, metrics.jsonl, curves.png, pictures of an episode before and after, summary.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from envs.browser.pool import browser_pool
from grpo.config import Config
from grpo.run import main

CONFIGS = Path(__file__).parent / "configs"

if __name__ == "__main__":
    sys.exit(main(lambda: Config.from_command_line(None, str(__doc__), CONFIGS), browser_pool))
