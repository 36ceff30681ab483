"""Success on held-out seeds, and episodes to step through.

    python examples/evaluate.py --task click-button           # the untrained model
    python examples/evaluate.py --adapter runs/click-test     # a run, with the run's options
    python examples/evaluate.py --adapter user/name --task click-test,login-user

The same as `grpo eval`: prints the success of each task with its 95 % interval beside a random
agent and a blind one, and leaves evaluation.json and media/index.html in the run's folder.
"""

import sys

from grpo.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate(sys.argv[1:], prog="examples/evaluate.py", description=str(__doc__)))
