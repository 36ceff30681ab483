"""vLLM's API server, whose engine processes end with it, however it ends.

    python -m grpo.generators.vllm.api_server OPTIONS    # those of vLLM's own api_server

vLLM's engine outlives an API server that was killed, and keeps its memory. A process that Python
spawns imports the main module of its parent under the name `__mp_main__`, which is this file.
"""

import ctypes
import multiprocessing
import os
import runpy
import signal

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Let Linux kill this process when the one that started it has ended."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__mp_main__":
    end_with_parent()
elif __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
