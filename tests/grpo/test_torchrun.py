"""The exit code of torchrun with several ranks; tests/examples/test_modal.py interrupts some."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from grpo.torchrun import exit_code_of

ROOT = Path(__file__).resolve().parents[2]
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([1, 1, -15], 1),
        ([2, 2, 2], 2),
        ([-15, -15, 2], 2),  # the others were ended before the one that refused was asked
        ([1, 1, 2], 2),
        ([143, 143, 143], 143),
        ([-9, -9, 1], 137),  # out of memory
    ],
)
def test_the_exit_code_is_that_of_the_rank_that_failed_or_refused(codes, code):
    assert exit_code_of(codes) == code


RANKS = """
    import os, signal, sys
    from grpo.distributed import World
    from grpo.errors import ConfigError
    from grpo.exits import exit_code

    def main():
        world, kind = World(), sys.argv[1]
        try:
            if world.rank == 1 and kind == "stopped":
                os.kill(os.getppid(), signal.SIGTERM)
            elif world.rank == 1:
                raise ConfigError(f"met at {os.environ['MASTER_ADDR']}")
            world.all_gather("nothing")
        except Exception as error:
            world.tell(error)
            raise

    sys.exit(exit_code(main))
"""


@pytest.mark.parametrize(("kind", "code"), [("refused", 2), ("stopped", 143)])
def test_torchrun_ends_as_its_ranks_do(tmp_path, kind, code):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(RANKS))
    ranks = ("--standalone", "--nproc-per-node", "2")
    command = [sys.executable, "-m", "grpo.torchrun", *ranks, str(program), kind]
    done = subprocess.run(command, env=QUIET, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "torch/distributed/run.py" not in done.stderr  # no traceback of torchrun's own
    # Not at this machine's name, which may lead nowhere.
    told = "error: rank 1 has failed: ConfigError: met at 127.0.0.1"
    assert (told in done.stderr) is (code == 2)
