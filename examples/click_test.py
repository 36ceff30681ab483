"""The main job: a small language model learns to click in a real browser.

    python examples/click_test.py                       # the bundled model on click-test
    python examples/click_test.py --task click-button   # another MiniWoB task
    python examples/click_test.py --model LiquidAI/LFM2-350M --max-turns 10

The same as `grpo train`: evaluates, trains, evaluates again, and leaves in the run's folder the
adapter, curves.png, media/index.html with episodes before and after, metrics.jsonl, TensorBoard
events, checkpoints and summary.json.
"""

import sys

from grpo.cli import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:], prog="examples/click_test.py", description=str(__doc__)))
