"""Rerun a command in a new process with Triton's interpreter on.

Triton reads TRITON_INTERPRET when it is imported, so the current process cannot switch the interpreter on.

A user's file may end the new process at any time, as `os._exit(0)` does. That must not pass for success, so a command
that has finished sets one more bit in its exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import torch

from ernie_m.reference.cli.command import DIFFERENCE, INTERRUPTED

from ..runtime import dispatch
from ..runtime.optional_triton import HAS_TRITON

# No exit code of a command has this bit.
FINISHED = 64


def run_interpreted(argv: Sequence[str]) -> int | None:
    """Run the command in a process with Triton's interpreter and return its exit code.

    Returns None if that is not needed: with a GPU, with the interpreter already on, or without Triton.
    """
    if dispatch.INTERPRETED or torch.cuda.is_available() or not HAS_TRITON:
        return None
    sys.stdout.flush()
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.Popen([sys.executable, "-m", "ernie_m.kernels.cli.interpreted", *argv], env=environment)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            # Ctrl-C in a terminal also reaches the child, which reports it.
            child.wait(timeout=5)
            return INTERRUPTED
        raise
    finally:
        child.kill()
    if -status in (signal.SIGSEGV, signal.SIGBUS):
        name = signal.Signals(-status).name
        print(f"ernie_m.kernels: {name} ended the process: did a kernel access memory out of range?", file=sys.stderr)
        return DIFFERENCE
    if status < 0:
        raise RuntimeError(f"{signal.Signals(-status).name} ended the process before the command had finished")
    if not status & FINISHED:
        raise RuntimeError(f"the process ended with code {status} before the command had finished")
    return status & ~FINISHED


if __name__ == "__main__":
    from .program import main

    sys.exit(main() | FINISHED)
