"""torchrun, with the exit code of its ranks: `python -m grpo.torchrun ... -m grpo train ...`.

torchrun itself ends with 1 and a traceback, whatever the ranks' codes were: whoever starts it
cannot tell a configuration that is refused from a failure that a restart may cure.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence

REFUSED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Start ranks and wait for them.

    Args:
        argv: torchrun's arguments; None for those of this process.

    Returns:
        The exit code: see `exit_code_of`, or 128 and the signal's number if a signal ended it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    options = parse_args(sys.argv[1:] if argv is None else argv)
    if options.standalone:  # as torchrun does it, but without names, which may lead nowhere
        options.standalone, options.rdzv_backend = False, "c10d"
        options.rdzv_endpoint, options.rdzv_id = "127.0.0.1:0", uuid.uuid4().hex
        options.local_addr = options.local_addr or "127.0.0.1"
    try:
        run(options)
    except SignalException as error:
        return 128 + error.sigval
    except ChildFailedError as error:
        first = error.get_first_failure()[1].exitcode
        return exit_code_of([first, *(each.exitcode for each in error.failures.values())])
    return 0


def exit_code_of(codes: Sequence[int]) -> int:
    """Return the exit code of a program whose ranks have failed.

    Args:
        codes: those of the ranks that failed, that of the first failure first; negative for a
            signal, which is what the other ranks are then ended with.

    Returns:
        2 if a rank refused what it was asked for, else the first one, as a shell reports it.
    """
    code = REFUSED if REFUSED in codes else codes[0]
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
