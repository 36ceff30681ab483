"""Several MiniWoB tasks at once: one adapter learns them all, with an oracle beside the policy.

    python examples/miniwob.py --config examples/configs/easy.yaml    # buttons, links, dialogs
    python examples/miniwob.py --config examples/configs/forms.yaml   # two actions and more
    python examples/miniwob.py --task click-tab,login-user --held-out-tasks enter-password

The same as `grpo train`, with the success of a scripted solver in every table; it does nothing on
a task that it cannot solve.
"""

import sys

from grpo.cli import train
from grpo.rollouts.agents import oracle_agent

if __name__ == "__main__":
    sys.exit(
        train(
            sys.argv[1:],
            prog="examples/miniwob.py",
            description=str(__doc__),
            baselines={"oracle": oracle_agent()},
        )
    )
