"""The exit code of a program, and the one line that says why it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from grpo.errors import ConfigError
from grpo.safe_output import one_line, protect_output, without_passwords


def exit_code(program: Callable[[], object], *, hint: Callable[[], str] | None = None) -> int:
    """Run a program; print one line for an error, and return the exit code that a shell expects.

    Args:
        program: raises what `grpo.run.train` raises.
        hint: returns what is added to the line of a program that a signal has stopped, or whose
            environment, generator or training has failed.

    Returns:
        0; 2 if the user asked for something that cannot be done, 1 if the infrastructure failed,
        128 and the signal's number if a signal ended the program.
    """
    protect_output()
    try:
        program()
        return 0
    except KeyboardInterrupt:  # while the program was imported: there is nothing to save
        return 130
    except ConfigError as error:
        print(f"error: {one_line(without_passwords(error))}", file=sys.stderr)
        return 2
    except Exception as error:
        from envs.base import EnvError, TaskError
        from grpo.distributed import PeerError, PeerRefused
        from grpo.generators.base import GeneratorError
        from grpo.shutdown import Stopped
        from grpo.training.updater import TrainingError

        if isinstance(error, Stopped):
            print(f"{error}{hint() if hint else ''}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(error.exit_code)  # torch's thread may be in an update that nobody awaits
        known = EnvError | TaskError | GeneratorError | TrainingError | PeerError | OSError
        if not isinstance(error, known):
            raise
        more = hint() if hint and not isinstance(error, TaskError | OSError) else ""
        print(f"error: {one_line(without_passwords(error))}{more}", file=sys.stderr)
        return 2 if isinstance(error, TaskError | PeerRefused) else 1
