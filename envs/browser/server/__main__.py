"""`python -m envs.browser.server`, an alias of `grpo serve-env`."""

import sys

from envs.browser.server.command import main

sys.exit(main(prog="python -m envs.browser.server"))
